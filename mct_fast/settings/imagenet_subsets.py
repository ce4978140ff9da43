"""The six ten-class subsets of ImageNet-1k that the field distils, by name.

The choice and the order of the classes are those of Cazenavette et al. 2022 (MTT); label k of a subset is its
k-th class here. A class is found by its WordNet id, which is the name of its folder; `class_id` is the
position of that id among the sorted 1000 of ImageNet-1k, which is what the field's tables list.
"""

from __future__ import annotations

from typing import NamedTuple


class ImageNetClass(NamedTuple):
    """One class of ImageNet-1k: `class_id` 0..999, WordNet id `wnid` (the folder's name), readable `name`."""

    class_id: int
    wnid: str
    name: str


IMAGENET_SUBSETS: dict[str, tuple[ImageNetClass, ...]] = {
    "imagenette": (
        ImageNetClass(0, "n01440764", "tench"),
        ImageNetClass(217, "n02102040", "English springer"),
        ImageNetClass(482, "n02979186", "cassette player"),
        ImageNetClass(491, "n03000684", "chain saw"),
        ImageNetClass(497, "n03028079", "church"),
        ImageNetClass(566, "n03394916", "French horn"),
        ImageNetClass(569, "n03417042", "garbage truck"),
        ImageNetClass(571, "n03425413", "gas pump"),
        ImageNetClass(574, "n03445777", "golf ball"),
        ImageNetClass(701, "n03888257", "parachute"),
    ),
    "imagewoof": (
        ImageNetClass(193, "n02096294", "Australian terrier"),
        ImageNetClass(182, "n02093754", "Border terrier"),
        ImageNetClass(258, "n02111889", "Samoyed"),
        ImageNetClass(162, "n02088364", "beagle"),
        ImageNetClass(155, "n02086240", "Shih-Tzu"),
        ImageNetClass(167, "n02089973", "English foxhound"),
        ImageNetClass(159, "n02087394", "Rhodesian ridgeback"),
        ImageNetClass(273, "n02115641", "dingo"),
        ImageNetClass(207, "n02099601", "golden retriever"),
        ImageNetClass(229, "n02105641", "Old English sheepdog"),
    ),
    "imagemeow": (
        ImageNetClass(281, "n02123045", "tabby"),
        ImageNetClass(282, "n02123159", "tiger cat"),
        ImageNetClass(283, "n02123394", "Persian cat"),
        ImageNetClass(284, "n02123597", "Siamese cat"),
        ImageNetClass(285, "n02124075", "Egyptian cat"),
        ImageNetClass(291, "n02129165", "lion"),
        ImageNetClass(292, "n02129604", "tiger"),
        ImageNetClass(290, "n02128925", "jaguar"),
        ImageNetClass(289, "n02128757", "snow leopard"),
        ImageNetClass(287, "n02127052", "lynx"),
    ),
    "imagesquawk": (
        ImageNetClass(84, "n01806143", "peacock"),
        ImageNetClass(130, "n02007558", "flamingo"),
        ImageNetClass(88, "n01818515", "macaw"),
        ImageNetClass(144, "n02051845", "pelican"),
        ImageNetClass(145, "n02056570", "king penguin"),
        ImageNetClass(22, "n01614925", "bald eagle"),
        ImageNetClass(96, "n01843383", "toucan"),
        ImageNetClass(9, "n01518878", "ostrich"),
        ImageNetClass(100, "n01860187", "black swan"),
        ImageNetClass(89, "n01819313", "sulphur-crested cockatoo"),
    ),
    "imagefruit": (
        ImageNetClass(953, "n07753275", "pineapple"),
        ImageNetClass(954, "n07753592", "banana"),
        ImageNetClass(949, "n07745940", "strawberry"),
        ImageNetClass(950, "n07747607", "orange"),
        ImageNetClass(951, "n07749582", "lemon"),
        ImageNetClass(957, "n07768694", "pomegranate"),
        ImageNetClass(952, "n07753113", "fig"),
        ImageNetClass(945, "n07720875", "bell pepper"),
        ImageNetClass(943, "n07718472", "cucumber"),
        ImageNetClass(948, "n07742313", "Granny Smith"),
    ),
    "imageyellow": (
        ImageNetClass(309, "n02206856", "bee"),
        ImageNetClass(986, "n12057211", "yellow lady's slipper"),
        ImageNetClass(954, "n07753592", "banana"),
        ImageNetClass(951, "n07749582", "lemon"),
        ImageNetClass(987, "n12144580", "corn"),
        ImageNetClass(779, "n04146614", "school bus"),
        ImageNetClass(599, "n03530642", "honeycomb"),
        ImageNetClass(291, "n02129165", "lion"),
        ImageNetClass(72, "n01773157", "black and gold garden spider"),
        ImageNetClass(11, "n01531178", "goldfinch"),
    ),
}
