"""Networks for cross-architecture evaluation, in the forms the field uses at 32x32 (DC, DSA, MTT).

Parameter order and shapes equal MTT's for 32x32 colour images and 28x28 grey ones. Other sizes keep the
convolutions: a larger last plane is averaged down to the size it has at 32x32; a halving that would leave
less than 2x2 pixels to a later instance norm (which would turn any image into a constant) is left out.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mct_fast.models.convnet import positive
from mct_fast.run.errors import InputError
from mct_fast.settings.names import check_zoo_name

Norm = Callable[[int], nn.Module]


def _instance_norm(width: int) -> nn.Module:
    return nn.GroupNorm(width, width)


def _shrink_to(plane: int, most: int) -> tuple[list[nn.Module], int]:
    """Layers that average a plane down to at most ``most`` pixels a side, and the side they leave."""
    return ([nn.AdaptiveAvgPool2d(most)], most) if plane > most else ([], plane)


class ZooModel(nn.Module):
    """One network of the zoo: ``features``, flattened, then ``classifier``. See :func:`build_zoo`."""

    def __init__(
        self,
        name: str,
        channels: int,
        image_size: int,
        num_classes: int,
        features: list[nn.Module],
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        self.name, self.channels, self.image_size, self.num_classes = name, channels, image_size, num_classes
        self.features = nn.Sequential(*features)
        self.classifier = classifier

    @property
    def spec(self) -> dict[str, object]:
        """The JSON form that :func:`mct_fast.models.build_model` takes back."""
        return {
            "name": self.name,
            "channels": self.channels,
            "image_size": self.image_size,
            "num_classes": self.num_classes,
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (He et al., CVPR 2016).

    Halves the plane by stride, or with ``average`` by 2x2 average pooling after a convolution of stride 1.
    """

    def __init__(self, inputs: int, width: int, halve: bool, norm: Norm, average: bool) -> None:
        super().__init__()
        stride = 2 if halve and not average else 1
        pool: list[nn.Module] = [nn.AvgPool2d(2)] if halve and average else []
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
            norm(width),
            nn.ReLU(),
            *pool,
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            norm(width),
        )
        self.shortcut = nn.Sequential()
        if halve or inputs != width:
            convolution = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, *(nn.AvgPool2d(2) for _ in pool), norm(width))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


def _lenet(channels: int, size: int, classes: int) -> tuple[list[nn.Module], nn.Module]:
    padding = 2 if channels == 1 and size == 28 else 0
    plane = ((size + 2 * padding - 4) // 2 - 4) // 2
    shrink, plane = _shrink_to(plane, 5)
    features = [
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *shrink,
    ]
    classifier = nn.Sequential(
        nn.Linear(16 * plane * plane, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
    )
    return features, classifier


def _alexnet(channels: int, size: int, classes: int) -> tuple[list[nn.Module], nn.Module]:
    padded = channels == 1 and size == 28
    shrink, plane = _shrink_to((32 if padded else size) // 8, 4)
    features = [nn.Conv2d(channels, 128, 5, padding=4 if padded else 2), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    for inputs, width in ((192, 256), (256, 192), (192, 192)):
        features += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
    return [*features, nn.MaxPool2d(2), *shrink], nn.Linear(192 * plane * plane, classes)


def _vgg11(channels: int, size: int, classes: int, norm: Norm) -> tuple[list[nn.Module], nn.Module]:
    padded = channels == 1 and size == 28
    stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    features: list[nn.Module] = []
    inputs, plane = channels, 32 if padded else size
    for stage, widths in enumerate(stages):
        for width in widths:
            padding = 3 if padded and not features else 1
            features += [nn.Conv2d(inputs, width, 3, padding=padding), norm(width), nn.ReLU()]
            inputs = width
        if plane // 2 >= 2 or stage == len(stages) - 1:
            features.append(nn.MaxPool2d(2))
            plane //= 2
    shrink, plane = _shrink_to(plane, 1)
    return [*features, *shrink], nn.Linear(512, classes)


def _resnet18(channels: int, size: int, classes: int, norm: Norm, average: bool) -> tuple[list[nn.Module], nn.Module]:
    features = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), norm(64), nn.ReLU()]
    inputs, plane = 64, size
    for width in (64, 128, 256, 512):
        halved = plane // 2 if average else (plane + 1) // 2
        halve = width > 64 and halved >= 2
        features += [
            BasicBlock(inputs, width, halve, norm, average),
            BasicBlock(width, width, False, norm, average),
        ]
        inputs, plane = width, halved if halve else plane
    shrink, plane = _shrink_to(plane, 4 if average else 1)
    return [*features, *shrink], nn.Linear(512 * plane * plane, classes)


_SMALLEST = {"LeNet": 16, "AlexNet": 8}


def build_zoo(name: str, channels: int = 3, image_size: int = 32, num_classes: int = 10) -> ZooModel:
    """Build a network of :data:`ZOO` for square images of ``image_size`` pixels a side.

    VGG11 and ResNet18 carry instance norm (one group a channel, affine), their BN forms batch norm; the AP
    forms halve by average pooling and classify 4x4 planes. LeNet and AlexNet have no norm.

    Raises:
        InputError: an unknown name, or images too small for the network.
    """
    check_zoo_name(name)
    channels, classes = positive("channels", channels), positive("num_classes", num_classes)
    if not isinstance(image_size, int):
        raise InputError(f"{name} takes square images: pass image_size as one number, or use ConvNet or MLP")
    size, smallest = positive("image_size", image_size), _SMALLEST.get(name, 4)
    if size < smallest:
        raise InputError(
            f"{name} needs image_size of at least {smallest}, not {size}: enlarge the images or use ConvNet or MLP"
        )
    norm: Norm = nn.BatchNorm2d if "BN" in name else _instance_norm
    if name == "LeNet":
        features, classifier = _lenet(channels, size, classes)
    elif name == "AlexNet":
        features, classifier = _alexnet(channels, size, classes)
    elif name.startswith("VGG11"):
        features, classifier = _vgg11(channels, size, classes, norm)
    else:
        features, classifier = _resnet18(channels, size, classes, norm, average=name.endswith("_AP"))
    return ZooModel(name, channels, size, classes, features, classifier)
