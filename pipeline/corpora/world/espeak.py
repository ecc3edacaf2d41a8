"""Text to speech for the drawn world: espeak-ng through the espeakng-loader wheel, nothing to install.

Takes a text and a voice, gives 16 kHz samples and the phonemes with their times, which are the only
alignment an offline demo can have. It exists so that the demo corpus and the pretraining of the small
speech models need no recordings.

espeak-ng keeps wave phases and other state in globals, so what it says depends on what it said before.
The library is therefore loaded anew for every utterance (a few milliseconds): an utterance has the same
samples in any order and on any worker. Those globals are per process: use processes, not threads.
"""

import _ctypes
import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from pipeline.errors import InputError

SAMPLE_RATE = 16_000

# English voices; "+x" is an espeak voice variant. The breathy ones (+f2, +f3, +f5) are left out: their
# noise differs from call to call.
VOICES: tuple[str, ...] = (
    "en-us",
    "en-us+f1",
    "en-us+f4",
    "en-us+m1",
    "en-us+m2",
    "en-us+m3",
    "en-us+m4",
    "en-us+m5",
    "en-us+m6",
    "en-us+m7",
    "en-us+m8",
    "en-us+klatt4",
    "en-us+Andrea",
    "en-us+linda",
    "en-us+belinda",
    "en-us+michel",
    "en-us+steph",
    "en-us+paul",
    "en-us+edward",
    "en-gb-x-rp",
    "en-gb-x-rp+m3",
    "en-gb-scotland",
    "en-us-nyc",
)

_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8, _BY_CHARACTER = 2, 0x0001, 1, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LIST_TERMINATED, _PHONEME = 0, 7


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """`waveform` float32 [num_samples] in [-1, 1]; `phonemes` [(first sample, espeak's name), ...]."""

    waveform: npt.NDArray[np.float32]
    phonemes: list[tuple[int, str]]


class _Engine:
    """The loaded library, for one utterance."""

    def __init__(self) -> None:
        import espeakng_loader

        self.espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        path = espeakng_loader.get_data_path().encode()
        self.sample_rate = self.espeak.espeak_Initialize(_SYNCHRONOUS, 0, path, _PHONEME_EVENTS)
        if self.sample_rate <= 0:
            raise InputError("espeak-ng could not be initialised; reinstall the espeakng-loader wheel")
        self.samples: list[npt.NDArray[np.int16]] = []
        self.phonemes: list[tuple[int, str]] = []
        # ctypes keeps no reference of its own: without this one the callback would be freed.
        self.callback = _Callback(self._receive)
        self.espeak.espeak_SetSynthCallback(self.callback)

    def _receive(
        self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]"
    ) -> int:
        if samples and count > 0:
            self.samples.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        number = 0
        while events[number].type != _LIST_TERMINATED:
            event = events[number]
            if event.type == _PHONEME:
                self.phonemes.append((event.sample, event.id.string.decode("utf-8", "replace")))
            number += 1
        return 0

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> None:
        self.samples, self.phonemes = [], []
        if self.espeak.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"espeak-ng has no voice {voice!r}; known to work: {', '.join(VOICES)}")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, 50), (_VOLUME, 100)):
            self.espeak.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        status = self.espeak.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, _BY_CHARACTER, 0, _UTF8, None, None
        )
        if status != 0:
            raise InputError(f"espeak-ng could not speak {text!r} (status {status})")
        self.espeak.espeak_Synchronize()

    def close(self) -> None:
        """Unload the library, and with it all of its state."""
        self.espeak.espeak_Terminate()
        _ctypes.dlclose(self.espeak._handle)


def synthesize(
    text: str, voice: str = "en-us", rate: int = 170, pitch: int = 50, sample_rate: int = SAMPLE_RATE
) -> Speech:
    """Speak `text`.

    Args:
        text: What to say.
        voice: An espeak voice, such as one of `VOICES`.
        rate: Words a minute. pitch: 0 to 99. sample_rate: of the result, in Hz.

    Raises InputError when the voice is unknown or nothing was spoken.
    """
    engine = _Engine()
    try:
        engine.speak(text, voice, rate, pitch)
    finally:
        engine.close()
    if not engine.samples:
        raise InputError(f"espeak-ng said nothing for {text!r} with voice {voice!r}")
    native = np.concatenate(engine.samples).astype(np.float32) / 32768.0
    waveform = soxr.resample(native, engine.sample_rate, sample_rate)
    scale = sample_rate / engine.sample_rate
    return Speech(waveform, [(int(sample * scale), name) for sample, name in engine.phonemes])
