"""The hand renderer: shapes, exact masks, randomness that depends on the seed alone, bad input."""

import cv2
import numpy as np
import pytest

from utils.render import backgrounds, camera, hand_pose, hands, zbuffer

NAMES = [*hands.GESTURES, hands.NONE]
GREEN = (0.0, 255.0, 0.0)


@pytest.fixture
def studio(monkeypatch):
    """Hands in front of a green screen: no shadow, no camera effects, no sleeves."""
    arm = hand_pose._build_arm
    monkeypatch.setattr(backgrounds, "paint", lambda rng, size, **others: np.full((size, size, 3), GREEN, np.float32))
    monkeypatch.setattr(hands, "_cast_shadow", lambda background, *others, **more: background)
    monkeypatch.setattr(camera, "photograph", lambda picture, rng: np.clip(picture, 0, 255).round().astype(np.uint8))
    monkeypatch.setattr(hand_pose, "_build_arm", lambda *arguments: tuple(values[:2] for values in arm(*arguments)))


@pytest.mark.parametrize("size", [32, 96, 97, 224])
def test_shapes_and_types(size):
    images, masks = hands.render_hands(NAMES, image_size=size, seed=1)
    assert images.shape == (4, size, size, 3) and images.dtype == np.uint8
    assert masks.shape == (4, size, size) and masks.dtype == bool
    assert masks[:3].any((1, 2)).all() and not masks[3].any()
    background = hands.render_background(np.random.default_rng(0), size)
    assert background.shape == (size, size, 3) and background.dtype == np.uint8


def test_no_names_give_empty_arrays():
    images, masks = hands.render_hands([])
    assert images.shape == (0, 96, 96, 3) and masks.shape == (0, 96, 96)


def test_one_hand_and_many_hands_agree():
    images, masks = hands.render_hands(["gu", "pa"], seed=3)
    image, mask = hands.render_hand("pa", np.random.default_rng([3, 1]))
    assert np.array_equal(image, images[1]) and np.array_equal(mask, masks[1])


@pytest.mark.parametrize("size", [96, 224])
@pytest.mark.parametrize("gesture", hands.GESTURES)
def test_a_hand_fills_a_plausible_share_of_the_picture(gesture, size):
    _, masks = hands.render_hands([gesture] * 40, size, seed=2)
    share = masks.mean((1, 2))
    assert share.min() > 0.02 and share.max() < 0.9
    assert 0.1 < share.mean() < 0.5


@pytest.mark.parametrize("gesture", hands.GESTURES)
def test_an_arm_comes_in_from_the_border(studio, gesture):
    _, masks = hands.render_hands([gesture] * 30, seed=4)
    for mask in masks:
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.any()
        pieces, _, areas, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        assert areas[1:pieces].max() > 0.97 * mask.sum()  # one body


@pytest.mark.parametrize("size", [96, 224])
def test_the_mask_is_exact(studio, size):
    images, masks = hands.render_hands(list(hands.GESTURES) * 8, size, seed=5)
    kernel = np.ones((7, 7), np.uint8)  # anti-aliasing reaches three pixels
    for image, mask in zip(images, masks, strict=True):
        is_green = (image == np.uint8(GREEN)).all(-1)
        surely_hand = cv2.erode(mask.astype(np.uint8), kernel).astype(bool)
        surely_not = ~cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
        assert is_green[surely_not].all()
        assert (image[surely_hand, 0] > image[surely_hand, 1]).mean() > 0.97  # skin is red rather than green


@pytest.mark.parametrize("size", [96, 224])
def test_the_mask_follows_the_picture_to_the_pixel(studio, size):
    for seed, gesture in enumerate(hands.GESTURES * 4):
        rng = np.random.default_rng(seed)
        _, _, alpha, mask, _ = hands._draw_hand(gesture, rng, size, hands._sample_light(rng), variety=1.0)
        rim = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~mask
        assert ((alpha >= 0.5) != mask).sum() < 0.2 * rim.sum()
        assert alpha[mask].min() > 0.25 and alpha[~mask].max() < 0.75


def test_a_sleeve_is_no_skin(monkeypatch):
    monkeypatch.setattr(backgrounds, "colour", lambda rng: np.float32([0, 0, 250]))  # blue sleeves
    monkeypatch.setattr(backgrounds, "PAINTERS", (lambda rng, size: np.full((size, size, 3), 128, np.float32),))
    images, masks = hands.render_hands(["pa"] * 60, seed=6)
    red, _, blue = (images[..., channel].astype(int) for channel in range(3))
    sleeve = blue - red > 60
    assert sleeve.any((1, 2)).sum() >= 4
    assert (sleeve & masks).sum() < 0.05 * sleeve.sum()


def test_capsules_by_hand():
    buffer = np.full((60, 80), zbuffer.EMPTY, np.float32)

    def draw(part, start, end):
        zbuffer.draw_capsules(buffer, np.array([[start, end]]), np.array([part]))
        return (zbuffer.part_ids(buffer) == part).sum()

    assert not zbuffer.part_ids(buffer).any()
    assert np.isclose(draw(7, (20.5, 30.5, 5, 10), (50.5, 30.5, 5, 10)), np.pi * 10**2 + 30 * 20, rtol=0.02)
    assert np.isclose(buffer[30, 35], 5 + np.sqrt(10**2 - 0.5**2))
    assert np.isclose(buffer[23, 35], 5 + np.sqrt(10**2 - 7.5**2))
    assert draw(8, (35.5, 30.5, 0, 6), (35.5, 30.5, 0, 6)) == 0  # hidden below
    assert np.isclose(draw(9, (35.5, 30.5, 30, 6), (35.5, 30.5, 30, 6)), np.pi * 6**2, rtol=0.05)  # end on: a disc
    assert buffer[30, 35] > 35.9
    assert draw(10, (-90, 30, 0, 6), (-70, 30, 0, 6)) == 0  # outside the canvas
    before = buffer.copy()
    zbuffer.draw_capsules(buffer, np.empty((0, 2, 4)), np.empty(0, int))
    assert np.array_equal(buffer, before)


def test_capsules_do_not_depend_on_their_company():
    rng = np.random.default_rng(0)
    ends = rng.uniform((-20, -20, -30, 3), (120, 120, 30, 20), (23, 2, 4))
    part = np.arange(1, 24)
    together, alone = np.full((2, 100, 100), zbuffer.EMPTY, np.float32)
    zbuffer.draw_capsules(together, ends, part)
    for i in range(23):
        zbuffer.draw_capsules(alone, ends[i : i + 1], part[i : i + 1])
    assert len(np.unique(zbuffer.part_ids(together))) > 8
    assert (zbuffer.part_ids(together) != zbuffer.part_ids(alone)).mean() < 0.002  # but for rounding
    assert np.isclose(together, alone, atol=0.05).mean() > 0.998


def test_the_hand_has_human_proportions():
    hand = hand_pose.build_hand("pa", np.random.default_rng(0))
    first = len(hand.part) - 14
    tips, knuckles = hand.end[first : first + 12].reshape(4, 3, 3)[:, 2], hand.start[first : first + 12 : 3]
    reach = np.linalg.norm(tips - knuckles, axis=1)  # index, middle, ring, little finger
    assert reach.argmax() == 1 and reach.argmin() == 3
    assert 0.8 < reach[1] / np.linalg.norm(knuckles[1]) < 1.15  # middle finger and palm
    assert (np.diff(tips[:, 0]) < 0).all() and hand.end[-1, 0] > tips[0, 0]  # thumb, then index … little finger
    assert (hand.radius[first:, 1] < hand.radius[first:, 0]).all()  # fingers taper


def test_fingers_stretch_as_the_gesture_says():
    stretched = {"choki": [True, True, False, False], "gu": [False] * 4, "pa": [True] * 4}
    for gesture, expected in stretched.items():
        for seed in range(20):
            hand = hand_pose.build_hand(gesture, np.random.default_rng(seed))
            bones = slice(len(hand.part) - 14, len(hand.part) - 2)
            gain = (hand.end - hand.start)[bones].reshape(4, 3, 3).sum(1)[:, 1]
            assert (gain > 45).tolist() == expected


def test_same_seed_same_images():
    first, again = hands.render_hands(NAMES * 3, seed=7), hands.render_hands(NAMES * 3, seed=7)
    other = hands.render_hands(NAMES * 3, seed=8)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert (first[0] != other[0]).any((1, 2, 3)).all()


def test_a_longer_list_begins_with_the_same_images():
    short, long = hands.render_hands(NAMES, seed=9), hands.render_hands(NAMES * 3, seed=9)
    assert np.array_equal(short[0], long[0][:4]) and np.array_equal(short[1], long[1][:4])


def test_global_random_state_is_untouched():
    np.random.seed(0)  # noqa: NPY002
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    cv2.setRNGSeed(5)
    expected = cv2.randu(np.zeros(4), 0, 1).copy()
    cv2.setRNGSeed(5)
    hands.render_hands(NAMES)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert np.array_equal(cv2.randu(np.zeros(4), 0, 1), expected)


def test_tones_from_pale_to_dark():
    luminances = []
    for tone in (0, 0.5, 1):
        images, masks = hands.render_hands(["pa", "gu"], seed=4, tone=tone)
        luminances.append(images[masks].mean())
        np.testing.assert_array_equal(masks, hands.render_hands(["pa", "gu"], seed=4)[1])  # all else stays
    assert luminances[0] > luminances[1] + 15 > luminances[2] + 30
    with pytest.raises(ValueError, match=r"tone must lie in \[0, 1\]. Received: 2"):
        hands.render_hands(["pa"], tone=2)


def test_skin_spans_pale_to_dark():
    images, masks = hands.render_hands(list(hands.GESTURES) * 20, seed=10)
    luminance = images @ np.array([0.299, 0.587, 0.114])
    medians = np.array([np.median(picture[mask]) for picture, mask in zip(luminance, masks, strict=True)])
    assert medians.min() < 65 and medians.max() > 170 and medians.std() > 25
    red, green, blue = np.array([images[i][masks[i]].mean(0) for i in range(60)]).T
    assert (red > blue).mean() > 0.9 and (red > green).mean() > 0.9


def take_view(gesture, seed, variety):
    rng = np.random.default_rng(seed)
    hand = hand_pose.build_hand(gesture, rng)
    return hand_pose.take_view(hand, gesture, rng, width=192, height=192, variety=variety)


def test_left_and_right_back_and_palm_all_occur():
    sides, faces = set(), set()
    for seed in range(40):
        view = take_view("pa", seed, 1.0)
        faces.add(view.back[0, 2] > 0)
        across = np.diff(view.ends[-14:-2:3, 0, :2], axis=0).sum(0)  # index to little finger knuckle
        fingers = (view.ends[-14:-2, 1] - view.ends[-14:-2, 0])[:, :2].sum(0)
        sides.add((view.back[0, 2] > 0, across[0] * fingers[1] - across[1] * fingers[0] > 0))
    assert faces == {True, False} and len(sides) == 4


@pytest.mark.parametrize("gesture", hands.GESTURES)
def test_less_variety_gives_hands_more_alike(gesture):
    def spread(variety):
        """Standard deviations of the hands' places and of their sizes, in pixels."""
        views = [take_view(gesture, seed, variety) for seed in range(40)]
        joints = np.array([view.ends[-14:, :, :2].reshape(-1, 2) for view in views])
        middles, sizes = (joints.min(1) + joints.max(1)) / 2, np.ptp(joints, axis=1).max(1)
        return middles.std(0).mean(), sizes.std()

    (place, size), (narrow_place, narrow_size) = spread(1.0), spread(0.05)
    assert narrow_place < 0.7 * place and narrow_size < 0.7 * size


def test_less_variety_gives_masks_more_alike():
    wide, narrow = (hands.render_hands(["pa"] * 40, seed=11, variety=variety)[1] for variety in (1.0, 0.05))
    assert narrow.mean((1, 2)).std() < 0.8 * wide.mean((1, 2)).std()
    sides = np.stack([narrow[:, :, :48].mean((1, 2)), narrow[:, :, 48:].mean((1, 2))])
    assert sides.min() > 0.05  # upright and in the middle: something of the hand on either side


def test_little_variety_leaves_plain_backgrounds(monkeypatch):
    used = []
    painters = [lambda rng, size, i=i: used.append(i) or np.zeros((size, size, 3), np.float32) for i in range(10)]
    monkeypatch.setattr(backgrounds, "PAINTERS", painters)
    for seed in range(60):
        hands.render_background(np.random.default_rng(seed), 32, variety=0.2)
    assert set(used) == {0, 1}
    for seed in range(60):
        hands.render_background(np.random.default_rng(seed), 32)
    assert len(set(used)) > 7


@pytest.mark.parametrize("painter", sorted(set(backgrounds.PAINTERS), key=lambda painter: painter.__name__))
@pytest.mark.parametrize("size", [32, 97])
def test_painters(painter, size):
    for seed in range(20):
        picture = painter(np.random.default_rng(seed), size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.float32
        assert picture.flags.c_contiguous and np.isfinite(picture).all()


def test_motion_draws_a_point_out_into_a_line():
    point = np.zeros((21, 21), np.float32)
    point[10, 10] = 9
    line = np.zeros_like(point)
    line[10, 6:15] = 1  # four pixels to either side
    np.testing.assert_allclose(camera.motion_blur(point, 4, 0), line, atol=1e-6)
    np.testing.assert_allclose(camera.motion_blur(point, 4, np.pi / 2), line.T, atol=1e-6)
    np.testing.assert_allclose(camera.motion_blur(point, 4, np.pi / 4)[[7, 13], [7, 13]], 9 / 7, atol=1e-6)


def test_the_number_of_threads_does_not_matter(monkeypatch):
    images, masks = hands.render_hands(NAMES * 3, seed=12)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    again, masks_again = hands.render_hands(NAMES * 3, seed=12)
    assert np.array_equal(images, again) and np.array_equal(masks, masks_again)


@pytest.mark.parametrize("variety", [0, -0.5, 2.5, float("nan")])
def test_bad_variety(variety):
    for call in (
        lambda: hands.render_hand("gu", np.random.default_rng(0), variety=variety),
        lambda: hands.render_hands(["gu"], variety=variety),
        lambda: hands.render_background(np.random.default_rng(0), variety=variety),
    ):
        with pytest.raises(ValueError, match="Received: "):
            call()


@pytest.mark.parametrize("gesture", ["rock", "", None, 1, "Gu"])
def test_unknown_gesture(gesture):
    with pytest.raises(ValueError, match="Received: "):
        hands.render_hand(gesture, np.random.default_rng(0))
    with pytest.raises(ValueError, match="Received: "):
        hands.render_hands(["gu", gesture])


@pytest.mark.parametrize("size", [31, 513, 0, -96, 96.0, "96", None, True, (96, 96)])
def test_bad_size(size):
    for call in (
        lambda: hands.render_hand("gu", np.random.default_rng(0), image_size=size),
        lambda: hands.render_hands(["gu"], size), lambda: hands.render_background(np.random.default_rng(0), size),
    ):
        with pytest.raises(ValueError, match="Received: "):
            call()


def test_rare_hands_have_masks_as_exact_as_the_usual_ones(studio):
    """In front of green, and without sleeves: what is not green is skin."""
    images, masks = hands.render_hands([*hands.GESTURES] * 8, 160, seed=7, variety=2.0)
    skin = images[..., 1] < images[..., 0]
    assert np.mean(skin == masks, axis=(1, 2)).min() > 0.97
    assert masks.mean((1, 2)).min() > 0.03 and masks.mean((1, 2)).max() < 0.9


def test_rare_hands_leave_the_others_as_they_are():
    usual, some, all_rare = (hands.render_hands(["pa"] * 12, seed=3, variety=variety)[0] for variety in (1.0, 1.5, 2.0))
    assert not np.array_equal(some, all_rare) and not np.array_equal(usual, all_rare)
    assert np.array_equal(some, hands.render_hands(["pa"] * 12, seed=3, variety=1.5)[0])


def test_rare_papers_have_their_fingers_together():
    spreads = [np.ptp(hand_pose._rare_pose("pa", np.random.default_rng(i))[1]) for i in range(40)]
    usual = [np.ptp(hand_pose._sample_pose("pa", np.random.default_rng(i))[1]) for i in range(40)]
    assert np.median(spreads) < 0.6 * np.median(usual)


def test_bars_are_as_wide_as_fingers_and_of_the_given_colours():
    wall, red = np.zeros((96, 96, 3), np.uint8), np.array([[200, 0, 0]])
    for seed in range(10):
        picture = backgrounds.bars(wall, red, np.random.default_rng(seed))
        assert picture.shape == wall.shape and picture.dtype == np.uint8 and not picture[..., 1:].any()
        rows = [row for row in picture[..., 0].astype(int) if row.max() > 30]
        edges = [np.count_nonzero(np.diff(row > row.max() / 2) != 0) for row in rows]
        assert rows and max(edges) <= 2 * 96 / (0.75 * backgrounds.BAR_WIDTH[0] * 96)
        assert np.array_equal(picture, backgrounds.bars(wall, red, np.random.default_rng(seed)))


def test_another_camera_changes_colours_and_sharpness_but_nothing_at_strength_0():
    image = hands.render_hands(["gu"], seed=1)[0][0]
    same = camera.other_camera(image, rng=np.random.default_rng(0), strength=0.0)
    assert np.array_equal(same, image)
    others = [camera.other_camera(image, rng=np.random.default_rng(seed)) for seed in range(30)]
    assert all(other.shape == image.shape and other.dtype == np.uint8 for other in others)
    colourful = [np.ptp(other.astype(int), axis=-1).mean() for other in others]
    assert min(colourful) < 0.5 * np.ptp(image.astype(int), axis=-1).mean() < max(colourful)
