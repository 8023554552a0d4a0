"""``keras-hybrid shard``: a data set in a few large files."""

import argparse

from keras_hybrid.cli.printing import print_facts


def run_shard(given: argparse.Namespace) -> None:
    """Write a data set's images into shards."""
    from keras_hybrid import data

    options = {
        name: getattr(given, name)
        for name in ("file_column", "label_column", "split_column", "landmarks")
        if getattr(given, name) is not None
    }
    size = {"image_size": given.image_size} if given.align else {}
    source = data.open_source(
        given.source, split=given.split, images=given.images, align=given.align, **size, **options
    )
    written = data.write_shards(
        source,
        given.out,
        given.shards,
        image_size=given.image_size,
        quality=given.quality,
        workers=given.workers,
    )
    files = list(given.out.iterdir())
    print_facts(
        {
            "path": given.out,
            "images": len(written),
            "left out": len(source) - len(written),
            "classes": len(written.class_names),
            "landmarks": written.landmarks is not None,
            "files": len(files),
            "bytes": sum(file.stat().st_size for file in files),
        }
    )
