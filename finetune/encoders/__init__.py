"""Networks that judge pictures: what they are called, how they read pictures, what they make of them."""

from finetune.encoders.encoder import Encoder
from finetune.encoders.load import check_encoder_name, load_encoder, load_text_encoder
from finetune.encoders.names import EMBEDDED_CLIP, EMBEDDED_JUDGE, PRESETS, ScorersConfig
from finetune.encoders.pixels import Preprocessing, hide_background

__all__ = [
    "EMBEDDED_CLIP",
    "EMBEDDED_JUDGE",
    "PRESETS",
    "Encoder",
    "Preprocessing",
    "ScorersConfig",
    "check_encoder_name",
    "hide_background",
    "load_encoder",
    "load_text_encoder",
]
