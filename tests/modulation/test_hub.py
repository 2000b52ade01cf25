"""Publishing and fetching modulations: the real client against a small hub on this machine."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest
import torch
import yaml

from modulate import Modulation
from modulate.errors import CheckpointError, MissingFileError
from modulate.hosts.host import understand
from modulate.modulation.config import HostSpec
from modulate.modulation.hub import FILES, fetch, model_card
from tests.tiny import CLIP, fresh, inputs, qwen

SHA = "0" * 39 + "1"


@pytest.fixture
def modulation(host):
    modulation = fresh(host, lora=True)
    torch.manual_seed(4)
    for parameter in modulation.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return modulation.eval()


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload and a download need; keeps repositories in memory."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repos = {}
        self.created = []
        self.commits = []
        self.tokens = set()
        self.fetched = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
        ).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self):
        self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlparse(self.path).path
        self.server.tokens.add(self.headers.get("Authorization"))
        if path == "/api/repos/create":
            request = json.loads(body)
            name = (
                f"{request['organization']}/{request['name']}"
                if request.get("organization")
                else request["name"]
            )
            if name in self.server.repos:
                return self.answer(409, {"error": "exists", "url": f"{self.server.address}/{name}"})
            self.server.created.append(request)
            self.server.repos[name] = {}
            return self.answer(200, {"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        name, what = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path
        ).groups()
        if what == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(
                    line["value"]["content"]
                )
            elif line["key"] == "deletedFile":
                del self.server.repos[name][line["value"]["path"]]
        self.server.commits.append(lines[0]["value"]["summary"])
        return self.answer(
            200,
            {
                "commitUrl": f"{self.server.address}/{name}/commit/{SHA}",
                "commitOid": SHA,
                "success": True,
            },
        )

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/.+)?", path)
        if match:
            if match[1] not in self.server.repos:
                return self.missing()
            files = self.server.repos[match[1]]
            if (match[2] or "").startswith("/tree/"):
                listed = [
                    {
                        "type": "file",
                        "path": path,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for path, content in files.items()
                ]
                return self.answer(200, listed)
            return self.answer(
                200,
                {"id": match[1], "sha": SHA, "siblings": [{"rfilename": path} for path in files]},
            )
        name, _, file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups()
        content = self.server.repos[name][file]
        if self.command == "GET":
            self.server.fetched.append(file)
        return self.answer(
            200,
            content,
            ETag=f'"{hashlib.sha1(content).hexdigest()}"',
            X_Repo_Commit=SHA,
            Content_Type="application/octet-stream",
        )

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server = Hub()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def push(modulation, hub, **options):
    return modulation.push_to_hub(
        "someone/gaze-tiny", token="hf_made_up", endpoint=hub.address, **options
    )


def pull(hub, tmp_path, repo="someone/gaze-tiny"):
    return Modulation.from_pretrained(
        repo, cache_dir=tmp_path / "cache", endpoint=hub.address, token=False
    )


# --- upload and download


def test_a_pushed_modulation_comes_back_with_the_same_logits(host, modulation, hub, tmp_path):
    assert push(modulation, hub, private=True) == f"{hub.address}/someone/gaze-tiny/commit/{SHA}"
    assert hub.repos["someone/gaze-tiny"].keys() == {"README.md", *FILES} and hub.commits == [
        "Upload a modulation"
    ]
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_made_up"}
    logits = []
    for each in (modulation, pull(hub, tmp_path)):
        with each.attached(host) as attachment, attachment.condition([[CLIP]] * 2):
            logits.append(host(**inputs()).logits)
    assert torch.equal(*logits)


def test_only_a_modulations_own_files_are_fetched(modulation, hub, tmp_path):
    push(modulation, hub)
    hub.repos["someone/gaze-tiny"] |= {
        "pytorch_model.bin": b"a pickle",
        "adapter/extra.py": b"code",
    }
    pull(hub, tmp_path)
    assert sorted(hub.fetched) == sorted(FILES)


def test_a_second_push_replaces_and_drops_an_adapter_that_is_gone(host, modulation, hub):
    push(modulation, hub)
    push(fresh(host), hub, commit_message="Without LoRA")
    assert hub.repos["someone/gaze-tiny"].keys() == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert hub.commits == ["Upload a modulation", "Without LoRA"] and len(hub.created) == 1


def test_a_repository_that_does_not_exist_is_named(hub, tmp_path):
    with pytest.raises(
        MissingFileError,
        match=(
            r"'someone/none' is not a local folder, and no modulation could be fetched from the hub"
            r" under that name: .*"
        ),
    ):
        pull(hub, tmp_path, "someone/none")


def test_a_repository_without_a_modulation_is_named(hub, tmp_path):
    hub.repos["someone/other"] = {"README.md": b"hello"}
    with pytest.raises(
        MissingFileError, match=r"is not a saved modulation: config\.json is missing there"
    ):
        pull(hub, tmp_path, "someone/other")


def test_offline_the_error_says_so(tmp_path):
    with pytest.raises(
        MissingFileError,
        match=(
            r"'someone/gaze-tiny' is not a local folder, and no modulation could be fetched from"
            r" the hub"
        ),
    ):
        Modulation.from_pretrained("someone/gaze-tiny", cache_dir=tmp_path)


# --- names


def test_a_repository_is_asked_for_by_its_name_and_a_folder_is_not(
    modulation, tmp_path, monkeypatch
):
    requests = []

    def snapshot_download(repo_id, **arguments):
        requests.append((repo_id, arguments))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    modulation.save_pretrained(tmp_path)
    loaded = Modulation.from_pretrained("someone/gaze", revision="v1")
    assert loaded.config.model_copy(update={"plugins": ()}) == modulation.config
    assert requests == [("someone/gaze", {"allow_patterns": list(FILES), "revision": "v1"})]
    monkeypatch.chdir(tmp_path.parent)
    Modulation.from_pretrained(tmp_path.name)
    Modulation.from_pretrained(tmp_path)
    assert len(requests) == 1


def test_a_name_that_the_hub_does_not_allow_is_refused():
    with pytest.raises(
        MissingFileError, match="no modulation could be fetched from the hub under that name"
    ):
        fetch("some one/gaze")


# --- the card


def test_the_card_says_what_is_inside(modulation, tmp_path):
    modulation.config = modulation.config.model_copy(
        update={"training": {"recipe": "gazeqwen_tiny", "seed": 3}}
    )
    modulation.save_pretrained(tmp_path)
    text = model_card(tmp_path, "someone/gaze-tiny")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "modulate",
        "tags": ["modulate", "qwen2_5_vl", "heatmap_dur", "gaze_resampler", "lora"],
    }
    lora = sum(parameter.numel() for parameter in modulation.lora.parameters())
    own = sum(parameter.numel() for parameter in modulation.parameters()) - lora
    for line in (
        "# gaze-tiny",
        "| host | `qwen2_5_vl`, 4 decoder layers of width 32; not part of this repository |",
        "| signal encoder | `heatmap_dur` (dim 16) |",
        "| frame features | width 12 |",
        "| injected after decoder layers | 1, 2, on visual tokens |",
        f"| parameters | {own:,}, and {lora:,} of LoRA |",
        "| LoRA | rank 2, alpha 16, on q_proj, v_proj (PEFT format, in `adapter/`) |",
        'modulation = modulate.Modulation.from_pretrained("someone/gaze-tiny")',
        '  "recipe": "gazeqwen_tiny",',
    ):
        assert line in body.splitlines(), line


def test_the_card_names_the_base_model_of_a_host_from_the_hub(modulation, tmp_path):
    host = qwen()
    assert HostSpec.of(understand(host)).name is None
    host.config._name_or_path = str(tmp_path)
    assert HostSpec.of(understand(host)).name is None
    host.config._name_or_path = "Qwen/Qwen2.5-VL-7B-Instruct"
    modulation.config = modulation.config.model_copy(update={"host": HostSpec.of(understand(host))})
    modulation.save_pretrained(tmp_path)
    _, front, body = model_card(tmp_path, "someone/gaze-tiny").split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert (
        '| host | `qwen2_5_vl` ("Qwen/Qwen2.5-VL-7B-Instruct"), 4 decoder layers of width 32; not'
        " part of this repository |" in body
    )
    Modulation.from_pretrained(tmp_path).attach(qwen()).detach()


def test_the_cards_code_is_python(modulation, tmp_path):
    modulation.save_pretrained(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", model_card(tmp_path, "someone/gaze-tiny"), re.S)
    compile(code, "README.md", "exec")


def test_a_folder_without_a_modulation_gets_no_card(tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"holds no modulation that a card can be written for: FileNotFoundError",
    ):
        model_card(Path(tmp_path), "someone/none")


@pytest.mark.parametrize("size", [2**64 - 1, 2**40, 3])
def test_weights_whose_header_lies_about_its_size_get_no_card(size, modulation, tmp_path):
    modulation.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(size.to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match=r"cannot be read: model\.safetensors"):
        model_card(tmp_path, "a/b")
