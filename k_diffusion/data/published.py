"""Facts about published data sets (addresses, checksums, classes), and downloading them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..core.files import download_file


class PublishedFile(NamedTuple):
    """A published file.

    Attributes:
        name: Its name.
        digest: Its SHA-256 or MD5.
        content: The SHA-256 of the contents of a .gz, if it is published.
    """

    name: str
    digest: str
    content: str | None = None


class Published(NamedTuple):
    """A published data set.

    Attributes:
        title: Its name.
        addresses: Where it is served, in order of preference.
        files: The files of the training images.
        class_names: The classes.
        test_files: The files of the test images.
    """

    title: str
    addresses: tuple[str, ...]
    files: tuple[PublishedFile, ...]
    class_names: tuple[str, ...]
    test_files: tuple[PublishedFile, ...] = ()


MNIST = Published(
    'MNIST',
    (
        'https://ossci-datasets.s3.amazonaws.com/mnist/',
        'https://storage.googleapis.com/cvdf-datasets/mnist/',
    ),
    (
        PublishedFile(
            'train-images-idx3-ubyte.gz',
            'f68b3c2dcbeaaa9fbdd348bbdeb94873',
            'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
        ),
        PublishedFile(
            'train-labels-idx1-ubyte.gz',
            'd53e105ee54ea40749a09fcbcd1e9432',
            '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
        ),
    ),
    tuple('0123456789'),
    (
        PublishedFile(
            't10k-images-idx3-ubyte.gz',
            '9fb629c4189551a2d022fa330f9573f3',
            '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
        ),
        PublishedFile(
            't10k-labels-idx1-ubyte.gz',
            'ec29112dd5afa0611ce80d1b7f02629c',
            'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
        ),
    ),
)
FASHION_MNIST = Published(
    'Fashion-MNIST',
    ('http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',),
    (
        PublishedFile('train-images-idx3-ubyte.gz', '8d4fb7e6c68d591d4c3dfef9ec88bf0d'),
        PublishedFile('train-labels-idx1-ubyte.gz', '25c81989df183df01b3e8a0aad5dffbe'),
    ),
    (
        'T-shirt/top',
        'trouser',
        'pullover',
        'dress',
        'coat',
        'sandal',
        'shirt',
        'sneaker',
        'bag',
        'ankle boot',
    ),
    (
        PublishedFile('t10k-images-idx3-ubyte.gz', 'bef4ecab320f06d8554ea6380940ec79'),
        PublishedFile('t10k-labels-idx1-ubyte.gz', 'bb300cfdad3c16e7a12a480ee83cd310'),
    ),
)
CIFAR10 = Published(
    'CIFAR-10',
    ('https://www.cs.toronto.edu/~kriz/',),
    (
        PublishedFile(
            'cifar-10-python.tar.gz',
            '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
        ),
    ),
    ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'),
)


def fetch(published: Published, folder: Path, searched: str) -> None:
    """Download the files of a data set into a folder.

    Args:
        published: The data set.
        folder: The folder.
        searched: The places searched before, for the message.

    Raises:
        FileNotFoundError: If the download fails; the message names files, address and folder.
    """
    for address in published.addresses:
        try:
            for file in published.files:
                download_file(folder / file.name, address + file.name, file.digest)
            return
        except OSError as error:
            reason = getattr(error.__context__, 'reason', None) or error
    raise FileNotFoundError(
        f'{missing(published, folder, searched)} (downloading failed: {reason})'
    )


def missing(published: Published, folder: Path, searched: str) -> str:
    """Return the message for missing files, with the address and the folder.

    Args:
        published: The data set.
        folder: The folder.
        searched: The places searched.
    """
    names = ' and '.join(file.name for file in published.files)
    them = 'it' if len(published.files) == 1 else 'them'
    return (
        f'{published.title} is not in {searched}: download {names} from '
        f'{published.addresses[0]} and place {them} in {folder}'
    )
