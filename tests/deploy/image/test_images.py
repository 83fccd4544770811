"""What was built, looked at and run: who it runs as, what is in it and what is not, that every library is found, and that
the program answers out of it."""

import http.client
import json
import re
import subprocess
import sys
import time
import tomllib

import pytest
from inside import Image, free_port
from manifests import ROOT

# 53 and 1450 MB on 2026-11-29. What grows past these was not meant to be there.
MEGABYTES_MAX = {"cpu": 80, "cuda": 1600}
SHELLS = {"sh", "bash", "dash", "busybox", "perl", "python3", "apt", "dpkg"}
QUESTION = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}


@pytest.fixture(params=["cpu", "cuda"], scope="module")
def image(request):
    return Image.of(request.param)


@pytest.fixture(scope="module")
def cpu():
    return Image.of("cpu")


@pytest.fixture(scope="module")
def cuda():
    return Image.of("cuda")


def version() -> str:
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def test_it_starts_as_nobody_in_particular(image):
    assert image.config["User"] == "65532:65532"
    assert image.config["Entrypoint"] == ["/usr/local/bin/flotilla"] and not image.config.get("Cmd")
    assert image.config["WorkingDir"] == "/opt/flotilla"


def test_its_labels_say_what_it_is(image):
    of = {key.removeprefix("org.opencontainers.image."): value for key, value in image.config["Labels"].items()}
    assert (of["title"], of["version"], of["licenses"]) == ("flotilla", version(), "Apache-2.0")
    kind = subprocess.run(["git", "cat-file", "-t", of["revision"]], cwd=ROOT, capture_output=True, text=True)
    assert kind.stdout.strip() == "commit", of["revision"]


def test_it_is_no_larger_than_it_was(image):
    megabytes = image.bytes() / 1e6
    print(f"{image.name}: {megabytes:.1f} MB")
    assert megabytes < MEGABYTES_MAX[image.name]


def test_there_is_no_shell_without_cards(cpu):
    assert [str(path) for path in cpu.root.rglob("*") if path.name in SHELLS and path.is_file()] == []
    assert cpu.run("-c", "true", entry=["/bin/sh"]).returncode != 0


def test_nobody_becomes_root_without_cards(cpu):
    found = [path for path in cpu.root.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o6000]
    assert found == []


def test_the_program_is_the_only_thing_of_ours_that_runs(image):
    assert sorted(path.name for path in (image.root / "usr/local/bin").iterdir()) == ["flotilla"]
    assert not [str(file) for file in image.files() if file.suffix in (".rs", ".whl") or file.name == "Cargo.toml"]


def test_licences_are_there(image):
    assert "Apache License" in (image.root / "opt/flotilla/LICENSE").read_text()
    wheels = list((image.root / "opt/flotilla/cuda").glob("*.dist-info"))
    assert len(wheels) == (3 if image.name == "cuda" else 0)
    assert all(list(wheel.rglob("License*")) for wheel in wheels), wheels


def test_every_library_is_found(image):
    programs = ["/usr/local/bin/flotilla", *(str(file) for file in image.files() if re.search(r"^/opt/flotilla/cuda/.*\.so", str(file)))]
    assert len(programs) >= (1 if image.name == "cpu" else 5)
    for program in programs:
        ran = image.run("--list", program, entry=["/lib64/ld-linux-x86-64.so.2"])
        assert ran.returncode == 0 and "not found" not in ran.stdout, f"{program}\n{ran.stdout}{ran.stderr}"


def test_the_authorities_of_the_web_are_there(image):
    told = (image.root / "etc/ssl/certs/ca-certificates.crt").read_text()
    assert told.count("BEGIN CERTIFICATE") > 100


def test_it_says_its_version(image):
    ran = image.run("--version")
    assert (ran.returncode, ran.stdout.strip()) == (0, f"flotilla {version()}"), ran.stderr


def test_the_doctor_finds_what_cards_need(image):
    ran = image.run("doctor", "--no-measure", "--json")
    assert ran.returncode == 0, ran.stderr
    libraries = json.loads(ran.stdout)["libraries"]
    found = {name: told["version"] for name, told in libraries.items() if told["state"] == "found"}
    assert set(found) == ({"nvrtc", "cublas_lt", "nccl"} if image.name == "cuda" else set()), libraries
    if found:
        assert all(told.get("path", "/opt/flotilla/cuda").startswith("/opt/flotilla/cuda") for told in libraries.values())


# In a process of its own: what NVRTC opens stays open.
COMPILES = """
import ctypes, sys
nvrtc = ctypes.CDLL(sys.argv[1])
program = ctypes.c_void_p()
source = b'extern "C" __global__ void f(float* x) { x[threadIdx.x] *= 2.0f; }'
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"f.cu", 0, None, None) == 0
options = (ctypes.c_char_p * 1)(b"--gpu-architecture=sm_75")
assert nvrtc.nvrtcCompileProgram(program, 1, options) == 0
size = ctypes.c_size_t()
assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0 and size.value > 500
"""


def test_the_compiler_compiles(cuda):
    """With what it opens by itself, its built-in functions, and without what was taken out."""
    library = cuda.root / "opt/flotilla/cuda/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"
    ran = subprocess.run([sys.executable, "-c", COMPILES, str(library)], capture_output=True, text=True, env={}, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_a_volume_for_kernels_is_the_programs(cuda):
    place = cuda.root / cuda.environment()["FLOTILLA_CACHE"].lstrip("/")
    about = place.stat()
    assert (about.st_uid, about.st_gid) == (65532, 65532)


def test_it_answers(image):
    port = free_port()
    served = image.start("up", f"--listen=127.0.0.1:{port}", "--device=cpu", "--threads=1")
    try:
        answer = asked(port, served)
        assert answer["choices"][0]["message"]["content"], answer
    finally:
        served.kill()
        served.wait()


def asked(port: int, served: subprocess.Popen) -> dict:
    """One answer, once it serves."""
    end = time.monotonic() + 60
    while time.monotonic() < end and served.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(QUESTION), {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status == 200:
                return json.loads(answer.read())
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    served.kill()
    raise AssertionError(f"it does not serve:\n{served.communicate()[0]}")
