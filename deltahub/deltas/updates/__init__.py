"""Methods that update a weight, one file each; importing this package registers them in `update.METHODS`."""

from deltahub.deltas.updates.boft import ScaledBlockRotation
from deltahub.deltas.updates.c3a import CirculantBlocks
from deltahub.deltas.updates.dense import DenseUpdate
from deltahub.deltas.updates.hira import HadamardWithWeight
from deltahub.deltas.updates.hra import Reflections
from deltahub.deltas.updates.loha import HadamardProduct
from deltahub.deltas.updates.lokr import KroneckerProduct
from deltahub.deltas.updates.oft import BlockRotation
from deltahub.deltas.updates.road import OutputRotation
from deltahub.deltas.updates.sparse import FourierUpdate, SparseUpdate, WaveletUpdate

__all__ = [
    "BlockRotation",
    "CirculantBlocks",
    "DenseUpdate",
    "FourierUpdate",
    "HadamardProduct",
    "HadamardWithWeight",
    "KroneckerProduct",
    "OutputRotation",
    "Reflections",
    "ScaledBlockRotation",
    "SparseUpdate",
    "WaveletUpdate",
]
