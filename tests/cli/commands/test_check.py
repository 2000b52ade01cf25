"""`modulate check`."""

from tests.paths import SMALL


def test_check_prints_figures_and_findings(work, modulate):
    folder, _, _ = work
    options = [f"data.params.root={folder}/world", "--cache", folder / "cache"]
    code, out, _ = modulate("check", SMALL, *options)
    assert code == 0 and "layers that reach the answer" in out and out.endswith("No errors.\n")
    code, out, _ = modulate("check", SMALL, "injection.layers=[5]", *options)
    assert code == 1
    assert "error: Injection into layer 5 cannot change the answer" in out
    assert out.endswith("1 error.\n")
