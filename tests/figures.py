"""Whether figures can be read in print."""


def texts(figure) -> list:
    """Every text that is drawn."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [
                tick.label1
                for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
                if tick.label1.get_visible() and low <= tick.get_loc() <= high
            ]
    within = [axes.get_legend() for axes in figure.axes]
    for legend in [*figure.legends, *(legend for legend in within if legend is not None)]:
        found += legend.get_texts()
    return [text for text in found if text.get_text().strip()]


def assert_legible(figure, path):
    """No text below 8 points, cut off or over another's; the width of a page; a file."""
    assert path.stat().st_size > 2000
    assert figure.get_size_inches()[0] <= 6.5
    figure.draw_without_rendering()
    boxes = []
    for text in texts(figure):
        assert text.get_fontsize() >= 8
        box = text.get_window_extent()
        assert box.x0 > -1 and box.x1 < figure.bbox.width + 1, text.get_text()
        assert box.y0 > -1 and box.y1 < figure.bbox.height + 1, text.get_text()
        boxes.append((text.get_text(), box.shrunk(0.95, 0.8)))
    for i, (first, a) in enumerate(boxes):
        for second, b in boxes[i + 1 :]:
            assert not a.overlaps(b), (first, second)
