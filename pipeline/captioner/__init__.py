"""The captioner: image tokens or pixels -> speech units. `ImageToSpeech` adds tokenizer and voice."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.image_to_speech import ImageToSpeech as ImageToSpeech


def __getattr__(name: str) -> Any:
    # Lazy, because it joins vision and speech, which this package does not know.
    if name == "ImageToSpeech":
        from pipeline.image_to_speech import ImageToSpeech

        return ImageToSpeech
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
