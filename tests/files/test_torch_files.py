"""PyTorch's files: those that are read, those that are refused, and those that are written."""

import argparse
import base64
import collections
import pickle
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.files import array_files, torch_files, weights
from tests.conftest import refusal
from tests.files.torch_pickles import (
    Call,
    of_torch,
    tensor,
    typed,
    zipped,
)
from tests.files.weight_files import STATE_DICT, same

BY_TORCH = (
    "c-o~_NpI6Y6rMOsQ<tTM0AVXT1ZdOPNty(yv{=X-EJO*5EH0LtnA*av`|L?8kfK&Xt;C7t!VPgj;>w9T|9}f8PH;e+_yZs@<4GDj"
    "DJ>K$lhI`6TV~#S<4h~j7(&S;>UnsSM($W$$9i_*fh|iZbZ>)ag=+%JsBr=?7Mz+15hbGXWaMET8(Q6}Vc=>t$F_|cww!s7zv0#m"
    "*Qj45Gdx7kS0R>BseCTGWLUE%hIkD-Zq3YU4Q$ySuerud!?NodHs(FY)fPn_5}AzJ=ZiS5K5IZ9gYdHL==c`<k%y!jp}f$qMoC{="
    "XaKJyFbv#Okisd^HQ1p<mB<?Gd}2}`yD;po!l0V)&CFQ32SX-NGW$%%B)}e%S2zrNeTG#?DUns!$I$yR9H>It--_7Y%E1s`ghK=$"
    "!*G~6;MU*>>4<})jAIzXu__$*9f-`qi4a2`PBI6lS`JQA2WJ@iEQWJc$TXU8UhOA~wK)UpG=6ZwpTC$<X<T8X38Vh$EgG&zLIPPO"
    ";<b)ytO+@DeJp^`1hF#~A>V|8KW=z4jqJ42m;9Levh<5g(l-6aWEw&-l1$nAjytDgttBi=M1pd>|MB@T<)`h>94RzGIa)E-blaMp"
    "pEKsMELAp4&A)oa3)H~m5`5=~1h=Vy0Td?&W*%b0p*bu|5p>VCFt!cKu{!bfAPrn%Q;wv65Hu=dIl6!LtW1)xDe@t0g|ydGl<~l`"
    "Z_m?YBE1Ep*k%-DDf^E{(blGVi*F{gNuP0ZJ*llH%F^ZSAAL)|ci-=vwWot*VsHx|m)bt^vNVpitIxEl?#tVsmbc!2Ke|G6*Hd`n"
    "{|+F}`$hC>_RiM%mquk;0REOe!?j2SJksf<s#$eeDs0P$kSmqS<6=pylq!{Su^^0#MWIlrh~;8lC>4r@l2{hRVvf3uEr0l#AwDv`"
    "%LwO3q2)7p4e&kAJMWQhT(I<qLYV6u>b)|$;laX9h2YN_yyv#)W(bz;K!{;a6a~w@8yKw4aIo%1(Rz({qk=USM!oHzgl<%@BEqP2"
    "Y#k+bqk{PyM!oK!@;#9Z<YIqVD~>vu-wg{UM>+(1;lnmg+i4|{7-_8=j*bTYe1!XJ9P7&o))O3kgQ4Y?I(u`(6AZ)q>)G1hQxC`7"
)


def test_a_file_by_torch_is_read(tmp_path):
    (tmp_path / "net.pt").write_bytes(zlib.decompress(base64.b85decode("".join(BY_TORCH))))
    params = weights.load(tmp_path / "net.pt")
    kernels = [np.arange(6, dtype=np.float32).reshape(2, 3).T, np.arange(4, dtype=np.float32).reshape(2, 2).T + 2]
    same(params, kernels, [np.arange(2) + 1, np.arange(2) + 3])


def test_tied_weights_are_read_and_views_of_one_storage_bounded(tmp_path):
    square = np.arange(4, dtype=np.float32).reshape(2, 2)
    tied = {"in.weight": tensor("0", (2, 2), (2, 1), 4), "out.weight": tensor("0", (2, 2), (2, 1), 4)}
    turned = {"turned.weight": tensor("0", (2, 2), (1, 2), 4)}
    arrays = torch_files.read_tensors(zipped(tmp_path / "net.pt", tied | turned, {"0": square}))
    for name, wanted in (("in.weight", square), ("out.weight", square), ("turned.weight", square.T)):
        np.testing.assert_array_equal(arrays[name], wanted)
    views = {f"{i}.weight": tensor("0", (4 - i % 2, 1), (1, 1 + i), 4) for i in range(40)}
    with refusal("is larger than its storage"):
        torch_files.read_tensors(zipped(tmp_path / "many.pt", views, {"0": square}))


SQUARE = np.arange(4, dtype=np.float32).reshape(2, 2)
KERNEL = tensor("0", (2, 2), (2, 1), 4)
STATE = {"fc.weight": KERNEL, "fc.bias": tensor("0", (2,), (1,), 4), "fc._extra_state": None}
EMA = {"fc.weight": tensor("1", (2, 2), (2, 1), 4)}
ADAM = {"state": {0: {"step": 3, "exp_avg": tensor("1", (2, 2), (2, 1), 4)}}, "param_groups": [{"lr": 0.1}]}
METRICS = {"loss": tensor("1", (), (), 4), "per_class": tensor("1", (4,), (1,), 4)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"net": STATE},
        {"weights": STATE, "optimizer": ADAM, "metrics": METRICS, "epoch": 3},
        {"checkpoint": {"inner": {"net": STATE}}, "optimizer_states": [ADAM], "best": tensor("1", (), (), 4)},
        {"model": STATE, "ema": EMA},
        {"ema": EMA, "state_dict": STATE, "model": EMA},
        {"model": "mlp", "model_state_dict": STATE, "state_dict": EMA},
        {"model": {"state_dict": STATE, "ema": EMA}, "other": EMA},
        {"checkpoint": {"model": STATE, "ema": EMA}},
        STATE | {"ema": EMA},
        {"model": Call("my.Net"), "ema": STATE},
    ],
)
def test_the_state_dict_is_found(tmp_path, content):
    found = torch_files.read_tensors(zipped(tmp_path / "net.pt", content, {"0": SQUARE, "1": SQUARE + 1}))
    assert found.keys() == {"fc.weight", "fc.bias"}
    np.testing.assert_array_equal(found["fc.weight"], SQUARE)


def test_tensors_of_few_axes_are_read_where_there_are_no_others(tmp_path):
    found = torch_files.read_tensors(zipped(tmp_path / "net.pt", {"model": METRICS}, {"1": SQUARE}))
    assert found["loss"] == 0 and found["per_class"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({"net": STATE, "ema": EMA}, "net, ema"),
        ({"a": {"b": STATE, "c": {"d": EMA}}, "fisher": EMA.copy()}, "fisher, a.b, a.c.d"),
        ({f"net\n{i}": dict(EMA) for i in range(9)}, "net 0, net 1, net 2, net 3, net 4, ..."),
    ],
)
def test_several_state_dicts_are_listed(tmp_path, content, places):
    zipped(tmp_path / "net.pt", content, {"0": SQUARE, "1": SQUARE})
    with refusal(f"net.pt: its tensors lie under several names, {places}: save one of them alone"):
        torch_files.read_tensors(tmp_path / "net.pt")


HUGE = (10**6, 10**6)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"fc.weight": tensor("0", HUGE, (10**6, 1), 10**12)}, "reaches beyond its storage"),
        ({"fc.weight": tensor("0", HUGE, (0, 0), 4)}, "larger than its storage"),
        ({"fc.weight": tensor("0", (2, 2), (-2, 1), 4)}, "reaches beyond its storage"),
        ({"fc.weight": tensor("0", (2, 2), (2, 1), 4, offset=-1)}, "reaches beyond its storage"),
        ({"fc.weight": tensor("../../secret", (2, 2), (2, 1), 4)}, "net/data/../../secret is missing"),
        ({"fc.weight": tensor("0", (2, 2), (2, 1), 4, "os.system")}, "a storage has an unknown type, os.system"),
        ({"fc.weight": tensor("0", (2, 2), (2,), 4)}, "has not as many strides as axes"),
        ({"fc.weight": tensor("0", (2.0, 2), (2, 1), 4)}, "a shape that is not made of whole numbers"),
        ({"fc.weight": tensor("0", (1,) * 99, (1,) * 99, 4)}, "a shape that is not made of whole numbers"),
        ({"fc.weight": typed("0", (3, 2), (2, 1), 16, "torch.uint32")}, "reaches beyond its storage"),
        ({((), ()): KERNEL}, "it holds no named tensors"),
        ([1, 2], "it holds no named tensors"),
    ],
)
def test_hostile_zips_are_refused(tmp_path, content, problem):
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    with refusal("net.pt is not a PyTorch file of tensors", problem):
        torch_files.read_tensors(zipped(tmp_path / "net.pt", content, {"0": np.ones(4, np.float32)}))


def test_damaged_zips_are_refused(tmp_path):
    whole = of_torch(tmp_path / "net.pt", STATE_DICT).read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with refusal("cut.pt is not a PyTorch file of tensors"):
            torch_files.read_tensors(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}." + bytes(10**6))
    with refusal("compressed or longer than the file"):
        torch_files.read_tensors(tmp_path / "deflated.pt")


def test_messages_quote_little_and_only_what_can_be_printed(tmp_path):
    names = [f"\x1b[31m{letter * 10**6}\u2028" for letter in "ab"]
    content = {name: {"fc.weight": KERNEL} for name in names}
    with refusal("its tensors lie under several names") as refused:
        torch_files.read_tensors(zipped(tmp_path / "net.pt", content, {"0": SQUARE}))
    del refused
    with pytest.raises(torch_files.InputError) as caught:
        torch_files.read_tensors(tmp_path / "net.pt")
    assert len(str(caught.value)) < 1_000 and str(caught.value).isprintable()


# Files that are written


WRITTEN = {
    "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fc.bias": np.arange(2, dtype=np.float64),
    "half.weight": np.arange(300).reshape(3, 100).astype(jnp.bfloat16),
    "eighth.weight": np.arange(6).reshape(2, 3).astype(jnp.float8_e4m3fn),
    "a name\n'é'": np.array(7, np.int64),
    "none": np.ones((0, 3), bool),
}


class Loader(pickle.Unpickler):
    """Reads the pickle as PyTorch does, with its functions replaced by their names."""

    def find_class(self, module, name):
        return collections.OrderedDict if name == "OrderedDict" else lambda *arguments: (name, arguments)

    def persistent_load(self, pid):
        return pid


def test_the_pickle_is_one_of_pickle_and_storages_are_aligned(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(array_files.array_bytes(path, WRITTEN))
    with zipfile.ZipFile(path) as archive, archive.open("archive/data.pkl") as file:
        content = Loader(file).load()
        assert list(content) == list(WRITTEN) and archive.testzip() is None
        assert archive.read("archive/byteorder") == b"little" and archive.read("archive/version") == b"3\n"
    function, (storage, offset, shape, strides, needs_gradient, hooks) = content["fc.weight"]
    assert function == "_rebuild_tensor_v2" and (offset, shape, strides) == (0, (2, 3), (3, 1))
    assert (storage[0], *storage[2:]) == ("storage", "0", "cpu", 6) and storage[1]()[0] == "FloatStorage"
    assert needs_gradient is False and hooks == {}
    function, (storage, _, shape, strides, _, _, dtype) = content["eighth.weight"]
    assert function == "_rebuild_tensor_v3" and storage[4] == 6 and dtype()[0] == "float8_e4m3fn"
    assert (shape, strides) == ((2, 3), (3, 1)) and content["a name\n'é'"][1][2:4] == ((), ())
    whole = path.read_bytes()
    for array in (WRITTEN["fc.weight"], WRITTEN["half.weight"]):
        assert whole.index(array.tobytes()) % 64 == 0
    assert whole == array_files.array_bytes(path, WRITTEN)


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    path = tmp_path / "net.pt"
    path.write_bytes(array_files.array_bytes(path, WRITTEN))
    for mapped in (False, True):
        found = torch.load(path, weights_only=True, mmap=mapped)
        for name, array in WRITTEN.items():
            assert str(found[name].dtype) == f"torch.{array.dtype.name}"
            np.testing.assert_array_equal(found[name].double().numpy(), array.astype(np.float64))
    torch.save({"net": found, "args": argparse.Namespace(a=1)}, tmp_path / "again.pt")
    again = torch_files.read_tensors(tmp_path / "again.pt")
    for name, array in WRITTEN.items():
        np.testing.assert_array_equal(again[name], array, strict=True)


def test_text_is_quoted_on_one_line():
    assert torch_files.one_line("a\nb\x1bc\u2028d\ud800") == "a b c d "
    assert torch_files.one_line(KeyError()) == "KeyError" and torch_files.one_line("a" * 99, 5) == "aaaaa"
