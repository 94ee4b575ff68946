"""Codecs of the uplink. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.train.uplink.clip import Clip
from tasks.train.uplink.codec import Chain, Codec, Use, check_chain
from tasks.train.uplink.dgc import DeepGradientCompression
from tasks.train.uplink.log_byte import LogByte
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.randomk import RandomK
from tasks.train.uplink.sign import Sign
from tasks.train.uplink.topk import TopK

Link = one_of(Clip, TopK, RandomK, Quantize, Sign, DeepGradientCompression, LogByte)

__all__ = ["Chain", "Codec", "Link", "Use", "check_chain"]
