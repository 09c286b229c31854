"""PyTorch's files: those that are read, and those that are refused."""

import base64
import zipfile
import zlib

import numpy as np
import pytest

from sa_jax.files import torch_files, weights
from tests.conftest import refusal
from tests.files.torch_pickles import Call, of_torch, tensor, zipped
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


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch._utils._rebuild_qtensor"])
def test_a_zip_runs_no_code(tmp_path, name):
    touched = tmp_path / "touched"
    zipped(tmp_path / "net.pt", {"fc.weight": Call(name, f"touch {touched}")}, {})
    with refusal("net.pt is not a PyTorch file of tensors", name, "is never done"):
        torch_files.read_tensors(tmp_path / "net.pt")
    assert not touched.exists()


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
        ({((), ()): 1}, "keys that are neither text nor numbers"),
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
