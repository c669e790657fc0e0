"""Makes the inputs beside it: NumPy's arrays, parquet tables and a pickle as Python 3 writes it. (numpy 2.4, pyarrow 26, pillow 12)

Image i of a table has 4 x 3 pixels of the color (10 i, 0, 0); image i of an array counts up from i.
"""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HERE = Path(__file__).parent


def png(i):
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (10 * i, 0, 0)).save(out, "png")
    return out.getvalue()


def table(name, images, labels=None, column="label", names=None, group=3, more=None, **how):
    """A table as Hugging Face's `datasets` writes it; None among the images is a null."""
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None if i is None else {"bytes": png(i), "path": f"{i}.png"} for i in images]
    columns = {"image": pa.array(rows, struct)}
    features = {"image": {"_type": "Image"}}
    if labels is not None:
        columns[column] = pa.array(labels, pa.string() if isinstance(labels[0], str) else pa.int64())
        features[column] = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    for key, (values, names) in (more or {}).items():
        columns[key] = pa.array(values)
        features[key] = {"names": names, "_type": "ClassLabel"}
    data = pa.table(columns)
    data = data.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(data, path, row_group_size=group, **how)


names = ["ant", "bee", "cat"]
table("hub/data/train-00000-of-00002.parquet", range(7), [i % 3 for i in range(7)], names=names)
table("hub/data/train-00001-of-00002.parquet", range(7, 11), [i % 3 for i in range(7, 11)], names=names)
table("hub/data/validation-00000-of-00001.parquet", range(11, 14), [i % 3 for i in range(11, 14)], names=names)
table("hub/data/test-00000-of-00001.parquet", range(14, 16), [-1, -1], names=names)
table("kept-back/train.parquet", range(4), [0, 1, 2, 0], names=names, compression="none")
table("kept-back/test.parquet", range(4, 6), [-1, -1], names=names, data_page_version="2.0")
table("fine.parquet", range(3), [2, 0, 1], column="fine_label", names=names, more={"coarse_label": ([0, 0, 0], ["all"])})
table("null.parquet", [0, None, 2])
table("zstd.parquet", range(3), [0, 1, 2], compression="zstd")
plain = pa.table({"caption": ["red"] * 4, "jpg": pa.array([png(i) for i in range(4)]), "label": ["b", "a", "b", "c"]})
pq.write_table(plain, HERE / "plain.parquet", compression={"caption": "gzip", "jpg": "none", "label": "snappy"})
pq.write_table(pa.table({"url": ["http://a/1.png"], "label": [1]}), HERE / "urls.parquet")


def count(*shape):
    """Element (i, j, ...) is i + (its place within i)."""
    size = int(np.prod(shape[1:]))
    return np.array([np.arange(i, i + size) % 256 for i in range(shape[0])], np.uint8).reshape(shape)


medmnist = {}
for part, n in [("train", 6), ("val", 3), ("test", 2)]:
    medmnist[f"{part}_images"] = count(n, 5, 4, 3)
    medmnist[f"{part}_labels"] = np.arange(n, dtype=np.uint8).reshape(n, 1) % 3
np.savez(HERE / "medmnist.npz", **medmnist)
np.savez_compressed(HERE / "packed.npz", **medmnist)
y = lambda n: (np.arange(n) % 3).astype(">i8")
np.savez(HERE / "keras.npz", x_train=count(6, 5, 6), y_train=y(6), x_test=count(2, 5, 6), y_test=y(2))
np.savez(HERE / "unnamed.npz", count(5, 3, 6, 5), np.array([2.0, 0, 1, 0, 1], np.float32))
many = np.zeros((4, 14), np.uint8)
np.savez(HERE / "many-labels.npz", train_images=count(4, 5, 6), train_labels=many, test_images=count(2, 5, 6), test_labels=many[:2])
(HERE / "npy").mkdir(exist_ok=True)
np.save(HERE / "npy/x_train.npy", count(6, 5, 5))
np.save(HERE / "npy/y_train.npy", y(6).astype("int16"))
np.save(HERE / "npy/x_test.npy", count(2, 5, 5))
np.save(HERE / "npy/y_test.npy", y(2).astype("uint32"))
(HERE / "no").mkdir(exist_ok=True)
np.save(HERE / "no/float.npy", count(3, 5, 5) / 255)
np.save(HERE / "no/short.npy", count(3, 5, 5).astype(np.uint16))
np.save(HERE / "no/fortran.npy", np.asfortranarray(count(3, 5, 6)))
np.save(HERE / "no/volumes.npy", count(2, 5, 5, 5))
np.save(HERE / "no/either.npy", count(2, 3, 5, 3))
np.save(HERE / "no/flat.npy", count(3, 25))
np.save(HERE / "no/objects.npy", np.array([{}, None], object), allow_pickle=True)

# CIFAR-10's keys, as bytes, with a matrix of NumPy 2: two images of one value.
(HERE / "cifar").mkdir(exist_ok=True)
data = np.repeat(np.array([[7], [200]], np.uint8), 3072, axis=1)
with open(HERE / "cifar/data_batch_1", "wb") as file:
    pickle.dump({b"labels": [3, 9], b"data": data}, file, protocol=4)
