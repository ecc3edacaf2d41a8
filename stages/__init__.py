"""The application: one DVC stage a file, each also a command. Paths, parameters and flags live here."""
