"""Evaluation: bits per dimension of data under a model, and the quality of samples, with errors."""

from .bits import bits_per_dim, dequantised, image_bits
from .classifier import Classifier, cached_classifier, train_classifier
from .collect import compute_features, extract, picture_batches, reference_features
from .features import (
    CLIPFeatureExtractor,
    DINOv2FeatureExtractor,
    Extractor,
    InceptionV3FeatureExtractor,
    ScriptFeatureExtractor,
    cache_folder,
)
from .frechet import fid, fid_infinity, fid_with_error, frechet_distance, sqrtm_eig
from .intervals import bootstrap, interval, jackknife
from .kernel import cmmd, kid, kid_subsets, kid_with_error, polynomial_kernel, squared_mmd
from .manifold import density_coverage, precision_recall
from .metrics import METRICS, Metric, caution, measure
from .moments import Moments
from .neighbours import Neighbours, nearest_neighbours, neighbour_picture
from .tensors import TensorFeatureExtractor

__all__ = [
    'METRICS',
    'CLIPFeatureExtractor',
    'Classifier',
    'DINOv2FeatureExtractor',
    'Extractor',
    'InceptionV3FeatureExtractor',
    'Metric',
    'Moments',
    'Neighbours',
    'ScriptFeatureExtractor',
    'TensorFeatureExtractor',
    'bits_per_dim',
    'bootstrap',
    'cache_folder',
    'cached_classifier',
    'caution',
    'cmmd',
    'compute_features',
    'density_coverage',
    'dequantised',
    'extract',
    'fid',
    'fid_infinity',
    'fid_with_error',
    'frechet_distance',
    'image_bits',
    'interval',
    'jackknife',
    'kid',
    'kid_subsets',
    'kid_with_error',
    'measure',
    'nearest_neighbours',
    'neighbour_picture',
    'picture_batches',
    'polynomial_kernel',
    'precision_recall',
    'reference_features',
    'sqrtm_eig',
    'squared_mmd',
    'train_classifier',
]
