"""MobileNetV2 with its ImageNet weights on real photos: what it sees, and where."""

import keras
import numpy as np
import pytest
from PIL import Image

from utils import gradcam, imaging, metrics, networks
from utils.__main__ import main
from utils.networks import classifiers

pytestmark = pytest.mark.real

DOG, BOXER, CAT = 243, 242, 282
# Of cat_dog.png, rows and columns: the dog's head and chest; the cat, which lies at its feet.
BOXES = {DOG: np.s_[10:122, 75:170], CAT: np.s_[124:224, 35:200]}


@pytest.fixture(scope="module")
def folder(imagenet_weights):
    folder = imagenet_weights.parent / "images"
    if not folder.is_dir():
        pytest.skip("there is no folder images beside $IMAGENET_WEIGHTS")
    return folder


@pytest.fixture(scope="module")
def photo(folder):
    return imaging.read_image(folder / "cat_dog.png")


@pytest.fixture(scope="module")
def mobilenet(imagenet_weights):
    return classifiers.build("mobilenet_v2", "imagenet")


@pytest.fixture(scope="module", params=["flat", "in a Sequential", "in a functional model with softmax"])
def network(request, mobilenet):
    if request.param == "flat":
        return mobilenet
    inputs = keras.Input((224, 224, 3))
    if request.param == "in a Sequential":
        return keras.Sequential([inputs, mobilenet])
    return keras.Model(inputs, keras.layers.Softmax()(mobilenet(inputs)))


def share(energy, class_id):
    """Of an energy (H, W): how much lies in the box of the class."""
    return energy[BOXES[class_id]].sum() / energy.sum()


def inside(energy, class_id):
    box = np.zeros(energy.shape, bool)
    box[BOXES[class_id]] = True
    return box[np.unravel_index(energy.argmax(), energy.shape)]


def test_the_best_three_classes(network, photo):
    scores = networks.forward(network, photo[None])[0]
    shares = scores if scores.min() >= 0 else keras.ops.softmax(scores).numpy()
    best = np.argsort(-shares)[:3]
    assert best.tolist() == [DOG, BOXER, CAT]
    np.testing.assert_allclose(shares[best], [0.57, 0.15, 0.04], atol=0.01)
    names = classifiers.class_names()
    assert [names[i].split(",")[0] for i in best] == ["bull mastiff", "boxer", "tiger cat"]


def test_each_class_is_seen_where_its_animal_is(network, photo):
    dog, cat = gradcam.explain(network, photo, targets=[[DOG, CAT]])[0]
    assert inside(dog, DOG) and share(dog, DOG) > 0.5 > 0.1 > share(dog, CAT)
    assert inside(cat, CAT) and share(cat, CAT) > 0.5 > 0.3 > share(cat, DOG)


def test_guided_gradcam_tells_the_animals_apart(network, photo):
    dog, cat = abs(gradcam.guided_gradcam(network, photo, targets=[[DOG, CAT]])[0]).sum(axis=-1)
    assert share(dog, DOG) > 0.8 > 0.1 > share(dog, CAT)
    assert share(cat, CAT) > 0.5 > 0.4 > share(cat, DOG)


def test_the_command_line_keeps_the_aspect(folder, tmp_path, capsys):
    photos = [str(folder / name) for name in ("cat_dog.png", "parrot.jpg", "cat_720p.jpg")]
    arguments = ["explain", *photos, "--network", "mobilenet_v2", "--keep-aspect", "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "243\tbull mastiff\t0.57" in printed and "\tmacaw\t" in printed and "\tEgyptian cat\t" in printed
    sizes = []
    for path in sorted(tmp_path.glob("*_heatmap.png")):
        with Image.open(path) as heat:
            sizes.append(heat.size)
    assert sizes == [(1280, 720), (224, 224), (512, 929)]


def test_heat_lies_on_the_bird_more_than_in_the_centre(folder, mobilenet):
    bird = imaging.read_image(folder / "bird_segmentation.bmp")
    with Image.open(folder / "bird_segmentation_mask.bmp") as picture:
        mask = np.asarray(picture)[None] >= 2  # 3 on the bird, interpolated at its rim
    best = networks.forward(mobilenet, imaging.resize(bird[None], 224, 224)).argmax(axis=1)
    # Twice the network's size: at 224 pixels one of the 7x7 cells is as wide as the bird's chest.
    network = classifiers.build("mobilenet_v2", "imagenet", image_size=448)
    baseline = metrics.heat_in_mask(metrics.centre_gaussian(*mask.shape[1:])[None], mask)
    for method in ("gradcam", "gradcam++", "layercam", "eigencam"):  # HiResCAM and XGrad-CAM equal Grad-CAM here
        heat = gradcam.explain(network, bird, targets=best, method=method)
        assert metrics.heat_in_mask(heat, mask) > baseline + 0.05
