"""Pictures as they are written: for a page and for a phone, nothing cut off, the same bytes."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest

from experiments.harness import drawing, result

LONG = "A unit whose name goes on and on, of the kind that hospitals give"


def picture(layout="constrained", panels=4):
    """Panels that share the first one's labels, with long names and a legend."""
    figure, axes = plt.subplots(
        1, panels, figsize=(3.0 * panels, 3.0), sharey=True, layout=layout, squeeze=False
    )
    for k, axis in enumerate(axes[0, : panels - 1]):
        axis.plot([1, 2, 3], label=f"{LONG} {k}")
        axis.set_title(LONG)
        axis.set_xlabel("days")
    axes[0, 0].set_ylabel("beds")
    axes[0, -1].set_axis_off()
    if layout:
        drawing.legend(figure)
    return figure, axes[0]


@pytest.fixture(autouse=True)
def style():
    plt.close("all")  # what tests before this one left open
    with plt.rc_context(drawing.STYLE):
        yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left  # a picture is forgotten when it is written


@pytest.mark.parametrize("layout", ["constrained", None])
def test_a_phone_gets_one_panel_below_the_other(tmp_path, layout):
    figure, axes = picture(layout)
    drawing.save(figure, tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as wide:
        assert wide.size == (1440, 360)
    with PIL.Image.open(tmp_path / "a_phone.png") as narrow:
        assert narrow.width == round(drawing.PHONE * 200) and narrow.height > 3 * narrow.width / 2
    boxes = [axis.get_position() for axis in axes[:3]]
    assert all(upper.y0 > lower.y1 for upper, lower in itertools.pairwise(boxes))
    np.testing.assert_allclose([box.width for box in boxes], boxes[0].width)
    assert figure.axes == list(axes[:3])  # the empty one takes no room
    # What the first panel said for all is said at each.
    assert [axis.get_ylabel() for axis in axes[:3]] == ["beds"] * 3
    assert all(axis.yaxis.get_tick_params()["labelleft"] for axis in axes[1:3])


def test_nothing_is_cut_off(tmp_path, monkeypatch):
    """Titles end where their panel does and the legend where the picture does, in both."""
    seen = []

    def look(figure, path, dpi, labels):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        seen.append(len(legend.get_texts()))
        assert legend.get_window_extent().width <= figure.bbox.width
        for axis in figure.axes:
            if axis.get_title(loc="left"):
                (title,) = (
                    text
                    for text in axis.findobj(plt.Text)
                    if text.get_text() == axis.get_title(loc="left")
                )
                assert "\n" in title.get_text()
                assert title.get_window_extent().width <= 1.1 * axis.get_window_extent().width
                around = axis.get_tightbbox()
                assert around.x0 >= -1 and around.x1 <= figure.bbox.width + 1

    monkeypatch.setattr(drawing, "_write", look)
    drawing.save(picture()[0], tmp_path / "a.png")
    assert seen == [3, 3]


def test_a_name_of_dollar_signs_is_no_formula(tmp_path):
    figure, axis = plt.subplots(figsize=(2, 2), layout="constrained")
    axis.set_title(r"\$\foo" * 9)
    drawing.save(figure, tmp_path / "a.png")
    lines = axis.get_title(loc="left").splitlines()
    assert len(lines) > 1 and "".join(lines) == r"\$\foo" * 9
    assert not any(line.endswith("\\") for line in lines[:1])


def test_names_are_placed_anew_for_a_phone(tmp_path):
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.plot([1, 2])
    widths = []

    def labels():
        assert not axis.texts  # those of the other picture are gone
        widths.append(axis.get_window_extent().width)
        axis.annotate("here", (0, 1))

    drawing.save(figure, tmp_path / "a.png", labels)
    assert widths[1] < widths[0] and not axis.texts


def test_pictures_are_the_same_bytes_twice(tmp_path):
    for name in "ab":
        drawing.save(picture()[0], tmp_path / f"{name}.png")
    for one, other in (("a.png", "b.png"), ("a_phone.png", "b_phone.png")):
        assert (tmp_path / one).read_bytes() == (tmp_path / other).read_bytes()
    assert result.phone(tmp_path / "a.png") == tmp_path / "a_phone.png"


def test_hundreds_of_sites_still_make_a_picture(tmp_path):
    """No side of a picture may have 65,536 pixels: a long one is drawn coarser."""
    figure = plt.figure(figsize=(0.2, 600))
    drawing._write(figure, tmp_path / "a.png", 200, None)
    plt.close(figure)
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert 2**15 < image.height < 2**16
