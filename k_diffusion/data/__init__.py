"""Data sets by name, decoded once where they fit, and the stream of training batches."""

from .archives import PictureArchive
from .caching import MEMORY_LIMIT, DecodedPictures, decode_once
from .cifar import CIFAR10Config
from .custom import CustomConfig
from .datasets import Dataset, Images, permutation
from .demo import DemoConfig
from .folders import FolderOfImages, ImageFolderClassConfig, ImageFolderConfig, find_pictures
from .huggingface import HuggingFaceConfig, hf_datasets_augs_helper
from .inspection import Inspection, inspect_pictures
from .loading import Loader
from .mnist import MNISTConfig
from .opening import DATASETS, DatasetConfig, open_dataset
from .pictures import EXTENSIONS, PIXEL_LIMIT, UnreadablePicture, load_picture, picture_bytes
from .python import PythonData, StreamData, StreamLoader, TensorData, as_dataset, measure_sigma_data
from .reading import read_items, readable_index
from .shards import ShardedSamples, ShardsConfig, pack_shards
from .streams import ENDLESS, RowStream
from .synthetic import SyntheticConfig, blobs, icons, waves
from .tensor_files import TensorFiles, TensorsConfig

__all__ = [
    'DATASETS',
    'ENDLESS',
    'EXTENSIONS',
    'MEMORY_LIMIT',
    'PIXEL_LIMIT',
    'CIFAR10Config',
    'CustomConfig',
    'Dataset',
    'DatasetConfig',
    'DecodedPictures',
    'DemoConfig',
    'FolderOfImages',
    'HuggingFaceConfig',
    'ImageFolderClassConfig',
    'ImageFolderConfig',
    'Images',
    'Inspection',
    'Loader',
    'MNISTConfig',
    'PictureArchive',
    'PythonData',
    'RowStream',
    'ShardedSamples',
    'ShardsConfig',
    'StreamData',
    'StreamLoader',
    'SyntheticConfig',
    'TensorData',
    'TensorFiles',
    'TensorsConfig',
    'UnreadablePicture',
    'as_dataset',
    'blobs',
    'decode_once',
    'find_pictures',
    'hf_datasets_augs_helper',
    'icons',
    'inspect_pictures',
    'load_picture',
    'measure_sigma_data',
    'open_dataset',
    'pack_shards',
    'permutation',
    'picture_bytes',
    'read_items',
    'readable_index',
    'waves',
]
