"""The gene file: what is written is read again, and nothing else is."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import learngene
from hyper import HYPER, hyper_gene
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import read_header
from learngene.methods import METHODS
from learngene.system.errors import GeneFileError, LearngeneError
from pico import batch, pico_gene, pico_shape

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


@pytest.fixture(scope="module")
def gene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gene of one layer's width 8: 6 kB, small enough to spoil it in many places."""
    path = tmp_path_factory.mktemp("gene") / "pico.safetensors"
    gene = pico_gene(embed_dim=8, depth=2, mlp_ratio=1.0)
    gene.metadata = {"ancestry": {"name": "pico"}, "classes": ["blue", "green", "red"], "data": {"source": ["Größe"]}}
    gene.save(path)
    return path


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        metadata: dict[str, Any] = json.loads(file.metadata()["learngene"])
    return metadata


def rewritten(path: Path, source: Path, change: Change) -> Path:
    """A copy of a gene file with its metadata and tensors changed."""
    metadata, tensors = metadata_of(source), load_file(source)
    change(metadata, tensors)
    save_file(tensors, path, {"learngene": json.dumps(metadata)})
    return path


def refusal(path: Path) -> str:
    """The one line with which a file is refused, by the reader without torch and by the loader alike."""
    with pytest.raises(GeneFileError) as error:
        Learngene.load(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    return message


# -- what is written is read -------------------------------------------------------------------------------

SET_HERE = ("sws", "mini-init", "pool", "sn-net", "lsamd", "lets", *HYPER)
"""Methods that have no settings that fit every shape."""


@pytest.mark.filterwarnings("ignore:.* is outside the|tal. no task is given:UserWarning")
@pytest.mark.parametrize(
    ("name", "settings_", "changes", "shape"),
    [
        ("tleg", {}, {}, 5),
        ("tleg", {"modules": ["mlp", "msa"], "first_layer": 2}, {"class_token": True}, 5),
        ("sws", {"stages": [1, 3]}, {"in_chans": 1, "mlp_ratio": 2.7}, 5),
        ("sws", {"stages": [2, 2]}, {"num_classes": 0}, 5),
        *((name, {}, {}, 4) for name in METHODS if name not in SET_HERE),
        *((name, HYPER[name], {"class_token": True}, 3) for name in ("tal", "logah", "ghn3")),
        ("lsamd", {"layers": [1, 3]}, {}, 4),
        ("lets", {"width": 8, "sources": 2}, {}, 4),
        ("mini-init", {"blocks": 2}, {"num_heads": 4}, 2),
        ("pool", {"rows": [8, 16]}, {}, "2+3"),
        ("pool", {"rows": [8, 16], "direction": "down", "final_norm": False}, {"class_token": True}, "3+2"),
        ("pool", {"rows": [8, 16]}, {"ending": "official"}, "4+0"),
        ("sn-net", {"rows": [[8, 2, 1], 16]}, {"num_classes": 0}, "8:1-2+16:3-4"),
        ("weight-subcloning", {}, {"ending": "official"}, 3),
    ],
)
def test_a_gene_survives_its_file(
    name: str, settings_: dict[str, Any], changes: dict[str, Any], shape: int | str, tmp_path: Path
) -> None:
    gene = pico_gene(name, settings_, **changes)
    gene.metadata = {"classes": ["ä", "b", "c"], "accuracy": {"top1": 97.5}}
    gene.save(tmp_path / "g.safetensors")
    loaded = learngene.load(tmp_path / "g.safetensors")
    assert (loaded.method, loaded.shape) == (gene.method, gene.shape)
    assert loaded.tensors().keys() == gene.tensors().keys()
    assert all(torch.equal(value, gene.tensors()[key]) for key, value in loaded.tensors().items())
    assert loaded.metadata == gene.metadata
    assert loaded.metadata["accuracy"] == {"top1": 97.5}
    images = batch(gene.shape)
    assert torch.equal(loaded.expand(shape)(images), gene.expand(shape)(images))


def test_saving_the_same_gene_twice_gives_the_same_bytes(gene_file: Path, tmp_path: Path) -> None:
    learngene.load(gene_file).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == gene_file.read_bytes()


def test_a_header_may_be_as_long_as_the_first_letters_of_a_zip(tmp_path: Path) -> None:
    """Its length comes first in the file; 0x4B50 reads "PK", as a zip begins."""
    gene, path = pico_gene(embed_dim=8, depth=2), tmp_path / "g.safetensors"
    gene.save(path)
    gene.metadata["note"] = "x" * (0x4B50 - (read_header(path).data_start - 8) - len('"note": "", ') - 4)
    gene.save(path)
    assert path.read_bytes()[:2] == b"PK"
    assert learngene.load(path).shape == gene.shape


@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision_storage_halves_the_file_and_rounds_once(dtype: str, digits: int, tmp_path: Path) -> None:
    gene = pico_gene(embed_dim=64)
    gene.save(tmp_path / "full.safetensors")
    gene.save(tmp_path / "half.safetensors", dtype=dtype)
    sizes = {p.stem: p.stat().st_size for p in tmp_path.iterdir()}
    assert sizes["half"] < 0.55 * sizes["full"]
    loaded = learngene.load(tmp_path / "half.safetensors")
    for key, value in gene.tensors().items():
        found = loaded.tensors()[key]
        assert found.dtype == torch.float32
        assert torch.equal(found, value.to(getattr(torch, dtype)).float())
        torch.testing.assert_close(found, value, rtol=2.0**-digits, atol=1e-4)
    stored = read_header(tmp_path / "half.safetensors").tensors["A.mlp.fc1.weight"].dtype
    assert stored == {"bfloat16": "BF16", "float16": "F16"}[dtype]


def test_an_unknown_storage_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match="unknown storage type 'float64'; did you mean 'float"):
        pico_gene().save(tmp_path / "g.safetensors", dtype="float64")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (float("inf"), "float32"), (1e6, "float16")])
def test_what_is_not_finite_is_neither_written_nor_read(
    value: float, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gene = pico_gene()
    name, tensor = next(iter(gene.tensors().items()))
    with torch.no_grad():
        tensor.view(-1)[0] = value
    with pytest.raises(LearngeneError, match=f"{name} is not finite as {dtype}, so .* is not written"):
        gene.save(tmp_path / "g.safetensors", dtype)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("learngene.genes.gene._not_finite", lambda tensors: None)  # as other programs write
    gene.save(tmp_path / "g.safetensors", dtype)
    monkeypatch.undo()
    with pytest.raises(GeneFileError, match=f"g.safetensors: {name} is not finite"):
        Learngene.load(tmp_path / "g.safetensors")


def test_the_header_says_what_the_file_holds(gene_file: Path) -> None:
    header = read_header(gene_file)
    gene = learngene.load(gene_file)
    assert header.stored_params == sum(parameter.numel() for parameter in gene.parameters())
    assert header.file_bytes == gene_file.stat().st_size
    assert header.metadata["classes"] == ["blue", "green", "red"]
    assert (header.method, header.shape) == (gene.method, gene.shape)


def golden_bytes() -> bytes:
    """Version 1 of the format in plain Python: what any later release has to read."""
    width, hidden, classes = 4, 4, 2
    layer = {
        "norm1.weight": (width,), "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "norm2.weight": (width,), "norm2.bias": (width,),
        "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 4, width),
        "patch_embed.proj.weight": (width, 3, 2, 2),
        "patch_embed.proj.bias": (width,),
        **{f"{source}.{name}": shape for source in "AB" for name, shape in layer.items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    table, data = {}, b""
    for number, (name, shape) in enumerate(shapes.items()):
        count = int(torch.tensor(shape).prod())
        values = [((number * 31 + k * 17) % 64 - 32) / 64 for k in range(count)]
        table[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + 4 * count]}
        data += struct.pack(f"<{count}f", *values)
    metadata = {
        "version": 1,
        "method": "tleg",
        "settings": {"modules": ["msa", "mlp", "ln"], "first_layer": 1},
        "shape": {
            "embed_dim": width, "depth": 2, "num_heads": 2, "mlp_ratio": 1.0, "patch_size": 2, "img_size": 4,
            "in_chans": 3, "num_classes": classes, "class_token": False, "ending": "aligned",
        },
        "classes": ["no", "yes"],
        "training": {"eps": 1e-08},
    }  # fmt: skip
    hasher = xxhash.xxh3_128(json.dumps(metadata, sort_keys=True).encode())
    rows = [[name, t["dtype"], t["shape"], *t["data_offsets"]] for name, t in sorted(table.items())]
    hasher.update(json.dumps(rows).encode())
    hasher.update(data)
    metadata["digest"] = f"xxh3_128:{hasher.hexdigest()}"
    header = json.dumps({"__metadata__": {"learngene": json.dumps(metadata)}, **table}).encode()
    return struct.pack("<Q", len(header)) + header + data


GOLDEN = golden_bytes()


def test_a_file_written_by_hand_is_read_and_expanded(tmp_path: Path) -> None:
    path = tmp_path / "golden.safetensors"
    path.write_bytes(GOLDEN)
    gene = learngene.load(path)
    assert gene.metadata["digest"] == "xxh3_128:adb1b78e0d26fb320134864b506c1613"
    first = torch.tensor([((3 * 31 + k * 17) % 64 - 32) / 64 for k in range(4)])  # the fourth tensor of the list above
    assert torch.equal(gene.tensors()["A.norm1.weight"], first)
    a, b = gene.tensors()["A.attn.proj.weight"], gene.tensors()["B.attn.proj.weight"]
    assert torch.equal(gene.expand(4).state_dict()["blocks.3.attn.proj.weight"], b + 0.75 * a)


# -- refusals ----------------------------------------------------------------------------------------------


def test_a_truncated_file_is_refused_wherever_it_ends(gene_file: Path, tmp_path: Path) -> None:
    content, path = gene_file.read_bytes(), tmp_path / "cut.safetensors"
    start = read_header(gene_file).data_start
    places = {0, 1, 7, 8, 9, start // 2, start - 1, start, start + 1, (start + len(content)) // 2, len(content) - 1}
    for place in sorted(places):
        path.write_bytes(content[:place])
        assert "truncated" in refusal(path) or "not a gene file" in refusal(path), place
    path.write_bytes(content)
    assert learngene.load(path).shape == pico_shape(embed_dim=8, depth=2, mlp_ratio=1.0)


def test_a_file_with_something_behind_it_is_refused(gene_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(gene_file.read_bytes() + b"\0")
    assert "too long" in refusal(path)


def test_a_flipped_bit_is_refused_wherever_it_is_in_the_header(gene_file: Path, tmp_path: Path) -> None:
    content, path = bytearray(gene_file.read_bytes()), tmp_path / "flipped.safetensors"
    accepted = []
    for place in range(0, read_header(gene_file).data_start, 7):
        bit = 1 << place % 8  # 7 and 8 have no common factor, so all bits take their turn
        content[place] ^= bit
        path.write_bytes(content)
        try:
            learngene.load(path)
            accepted.append(place)
        except GeneFileError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - one line each, thousands of times
        content[place] ^= bit
    assert accepted == []


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_unless_it_means_the_same(data: st.DataObject) -> None:
    """JSON leaves a little room: a space may be a tab, 1e-06 may be 1E-06."""
    place = data.draw(st.integers(0, len(GOLDEN) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != GOLDEN[place]))
    path = Path(os.environ["LEARNGENE_CACHE"]) / "changed.safetensors"
    path.write_bytes(GOLDEN[:place] + bytes([value]) + GOLDEN[place + 1 :])
    try:
        changed = Learngene.load(path)
    except GeneFileError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either outcome is checked
    else:
        path.write_bytes(GOLDEN)
        golden = Learngene.load(path)
        assert changed.metadata == golden.metadata
        assert all(torch.equal(value, golden.tensors()[key]) for key, value in changed.tensors().items())


def exchange_norms(_metadata: object, tensors: dict[str, torch.Tensor]) -> None:
    tensors["A.norm1.bias"], tensors["A.norm2.bias"] = tensors["A.norm2.bias"], tensors["A.norm1.bias"]


CHANGES: dict[str, tuple[Change, str]] = {
    "version 2": (lambda m, _: m.update(version=2), "gene format version 2, but this learngene reads version 1"),
    "version 0": (lambda m, _: m.update(version=0), "gene format version 0"),
    "version as text": (lambda m, _: m.update(version="1"), "gene format version '1'"),
    "no version": (lambda m, _: m.pop("version"), "metadata is damaged"),
    "no method": (lambda m, _: m.pop("method"), "metadata is damaged"),
    "no shape": (lambda m, _: m.pop("shape"), "metadata is damaged"),
    "no settings": (lambda m, _: m.pop("settings"), "metadata is damaged"),
    "unknown method": (lambda m, _: m.update(method="tleq"), "unknown method 'tleq'; did you mean 'tleg'"),
    "method of another type": (lambda m, _: m.update(method=["tleg"]), "metadata is damaged"),
    "unknown setting": (lambda m, _: m["settings"].update(modul=1), "unknown key 'modul'; did you mean 'modules'"),
    "wrong setting": (lambda m, _: m["settings"].update(modules=["x"]), "unknown module 'x'"),
    "settings of another type": (lambda m, _: m.update(settings="x"), "damaged"),
    "impossible shape": (lambda m, _: m["shape"].update(num_heads=3), "not divisible by num_heads 3"),
    "unknown shape field": (lambda m, _: m["shape"].update(dept=3), "unknown key 'dept'; did you mean 'depth'"),
    "shape of another type": (lambda m, _: m.update(shape=[8, 2]), "shape: must be a name or a mapping"),
    "depth without a second layer": (lambda m, _: m["shape"].update(depth=1), "use depth 2 or more"),
    "missing tensor": (lambda _, t: t.pop("A.mlp.fc1.weight"), "tensor 'A.mlp.fc1.weight' is missing"),
    "missing head": (lambda _, t: t.pop("head.bias"), "tensor 'head.bias' is missing"),
    "extra tensor": (lambda _, t: t.update(C=torch.zeros(1)), "unexpected tensor 'C'"),
    "misshapen tensor": (lambda _, t: t.update(pos_embed=torch.zeros(1, 4, 9)), "'pos_embed' has shape"),
    "transposed tensor": (
        lambda _, t: t.update({"B.attn.qkv.weight": t["B.attn.qkv.weight"].T.contiguous()}),
        "'B.attn.qkv.weight' has shape",
    ),
    "integers": (lambda _, t: t.update({"norm.bias": torch.zeros(8, dtype=torch.int32)}), "has type I32"),
    "doubles": (lambda _, t: t.update({"norm.bias": torch.zeros(8, dtype=torch.float64)}), "has type F64"),
    "another digest": (lambda m, _: m.update(digest="xxh3_128:" + "0" * 32), "does not match its digest"),
    "no digest": (lambda m, _: m.pop("digest"), "does not match its digest"),
    "changed value": (lambda _, t: t["norm.bias"].add_(1e-6), "does not match its digest"),
    "exchanged tensors": (exchange_norms, "does not match its digest"),
    "changed class name": (lambda m, _: m["classes"].reverse(), "does not match its digest"),
    "added metadata": (lambda m, _: m.update(note="x"), "does not match its digest"),
}


@pytest.mark.parametrize("name", ["tal", "logah", "ghn3"])
def test_a_hypernetwork_from_before_its_positions_were_mended_is_refused(name: str, tmp_path: Path) -> None:
    gene = hyper_gene(name)
    gene.save(tmp_path / "now.safetensors")
    assert gene.metadata["version"] == 2
    old = rewritten(tmp_path / "old.safetensors", tmp_path / "now.safetensors", lambda m, _: m.update(version=1))
    assert refusal(old).removeprefix(f"{old}: ") == (
        f"a gene of {name} of version 1: its position tables were not laid out patch by patch, as the authors' are; "
        "condense it again"
    )


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_not_the_gene_it_says_is_refused(
    change: Change, message: str, gene_file: Path, tmp_path: Path
) -> None:
    assert message in refusal(rewritten(tmp_path / "other.safetensors", gene_file, change))


class Evil:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "write",
    [
        lambda path, evil: path.write_bytes(pickle.dumps(evil, protocol=2)),
        lambda path, evil: path.write_bytes(pickle.dumps(evil, protocol=4)),
        lambda path, evil: path.write_bytes(pickle.dumps({"A": evil}, protocol=0)),
        lambda path, evil: torch.save({"A": evil}, path),
        lambda path, evil: torch.save({"A": evil}, path, _use_new_zipfile_serialization=False),
    ],
    ids=["pickle 2", "pickle 4", "pickle 0", "torch", "torch, old"],
)
def test_a_pickle_is_refused_and_not_unpickled(write: Callable[[Path, Evil], object], tmp_path: Path) -> None:
    path, trace = tmp_path / "gene.safetensors", tmp_path / "trace"
    write(path, Evil(trace))
    refusal(path)
    assert not trace.exists()


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", b"x" * 1000)


OTHER_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such gene file"),
    "empty": (lambda path: path.write_bytes(b""), "not a gene file, or truncated"),
    "directory": (lambda path: path.mkdir(), "a folder, not a gene"),
    "text": (lambda path: path.write_text("a: 1\n" * 100), "not a gene file"),
    "zip": (a_zip, "a zip archive, not a gene file"),
    "onnx": (lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch"), "not a gene file, or truncated"),
    "executorch": (lambda path: path.write_bytes(b"0000ET12" + bytes(99)),
                   "an exported program of ExecuTorch, not a gene file; give the folder that it was exported from"),
    "image": (lambda path: path.write_bytes(b"\x89PNG" + bytes(99)), "an image, not a gene file"),
    "checkpoint": (lambda path: torch.save({"a": torch.zeros(2)}, path),
                   "a checkpoint of torch, a pickle, not a gene file; learngene never unpickles a gene"),
    "zeros": (lambda path: path.write_bytes(bytes(1000)), "not a gene file"),
    "huge header": (lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + bytes(100)), "not a gene file"),
    "header of a list": (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"), "header is damaged"),
    "header of a number": (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"42"), "header is damaged"),
    "not utf-8": (lambda path: path.write_bytes(struct.pack("<Q", 4) + b'"\xff\xff"'), "header is damaged"),
    "no metadata": (lambda path: save_file({"a": torch.zeros(2)}, path), "entry; 1 tensors, the first is a)"),
    "other metadata": (lambda path: save_file({"a": torch.zeros(2)}, path, {"format": "pt"}), "but not a gene"),
    "metadata no json": (lambda path: save_file({"a": torch.zeros(2)}, path, {"learngene": "{"}),
                         "metadata is damaged"),
    "metadata a list": (lambda path: save_file({"a": torch.zeros(2)}, path, {"learngene": "[1]"}),
                        "metadata is damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("write", "message"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_any_other_file_is_refused(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "gene.safetensors"
    write(path)
    assert message in refusal(path)


def spoiled_header(path: Path, source: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a gene file with its table of tensors changed."""
    content = source.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return path


TABLES: dict[str, Callable[[dict[str, Any]], object]] = {
    "overlapping tensors": lambda h: h["norm.bias"].update(data_offsets=h["norm.weight"]["data_offsets"]),
    "exchanged tensors": lambda h: h.update({"norm.bias": h["norm.weight"], "norm.weight": h["norm.bias"]}),
    "negative offset": lambda h: h["norm.bias"].update(data_offsets=[-32, 0]),
    "offsets as text": lambda h: h["norm.bias"].update(data_offsets=["0", "32"]),
    "one offset": lambda h: h["norm.bias"].update(data_offsets=[0]),
    "three offsets": lambda h: h["norm.bias"].update(data_offsets=[0, 32, 64]),
    "too few bytes": lambda h: h["norm.bias"].update(data_offsets=[0, 28]),
    "no type": lambda h: h["norm.bias"].pop("dtype"),
    "entry no mapping": lambda h: h.update({"norm.bias": 3}),
    "shape no list": lambda h: h["norm.bias"].update(shape=8),
    "fractional shape": lambda h: h["norm.bias"].update(shape=[8.0]),
    "metadata no mapping": lambda h: h.update(__metadata__=3),
    "metadata not text": lambda h: h["__metadata__"].update(learngene=3),
}


@pytest.mark.parametrize(
    ("name", "verify"),
    # Unasked for verification, two tensors of one shape may change places; that is what the digest is for.
    [(name, verify) for name in TABLES for verify in (True, False) if verify or name != "exchanged tensors"],
)
def test_a_spoiled_table_of_tensors_is_refused(name: str, verify: bool, gene_file: Path, tmp_path: Path) -> None:
    path = spoiled_header(tmp_path / "g.safetensors", gene_file, TABLES[name])
    with pytest.raises(GeneFileError) as error:
        Learngene.load(path, verify_content=verify)
    assert len(str(error.value).splitlines()) == 1
