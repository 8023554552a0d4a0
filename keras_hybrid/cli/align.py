"""``keras-hybrid align``: photographs become aligned crops."""

import argparse

from keras_hybrid.cli.printing import print_facts


def run_align(given: argparse.Namespace) -> None:
    """Find the faces of a data set's photographs and write them as crops."""
    from keras_hybrid import data

    detector = data.FaceDetector(given.detector)
    options = {
        name: getattr(given, name)
        for name in ("file_column", "label_column", "split_column")
        if getattr(given, name) is not None
    }
    source = data.open_source(given.source, split=given.split, images=given.images, **options)
    crops = data.write_crops(
        source,
        given.out,
        detector,
        given.image_size,
        several=given.several,
        smallest_eye_distance=given.eye_distance,
        quality=given.quality,
    )
    print_facts(
        {
            "path": given.out,
            "photographs": len(source),
            "crops": crops.written,
            "of several faces": crops.several,
            "unreadable": crops.unreadable,
            "without a face": crops.without_face,
            "face too small": crops.small,
            "several faces": crops.crowded,
            "identities": len(source.class_names) - len(crops.lost),
            "without a crop": len(crops.lost),
        }
    )
