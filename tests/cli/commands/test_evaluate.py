"""`modulate eval`."""


def test_eval_reproduces_the_metrics_exactly(work, modulate):
    folder, _, _ = work
    run = folder / "runs" / "small"
    before = (run / "metrics.json").read_bytes(), (run / "predictions.jsonl").read_bytes()
    code, out, _ = modulate("eval", run, "--cache", folder / "cache")
    assert code == 0 and out.splitlines()[-1] == f"Run: {run}"
    assert ((run / "metrics.json").read_bytes(), (run / "predictions.jsonl").read_bytes()) == before
