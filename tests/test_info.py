"""`python -m pyengine.info` names versions, instruction set and the backend of every op."""

from pyengine.kernels import _native, _select

from pyengine import info


def test_every_op_is_listed(capsys):
    info.main([])
    told = capsys.readouterr().out
    assert f"kernels for {_native.isa}" in told and f"pyengine {info.__version__}" in told
    assert all(op in told for op in _select.ops())
    assert info.versions()["torch"] != "-"
