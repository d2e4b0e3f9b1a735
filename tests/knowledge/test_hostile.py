"""Documents made to harm: each is read or refused by a process that may end of it; nobody else ends, swells, waits or obeys."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from appliance.app import Appliance
from appliance.errors import BadInput
from appliance.knowledge import ocr, readers
from appliance.knowledge.extract import extract
from appliance.knowledge.library import EVERYTHING, FileReport, Library
from appliance.settings import CLONE, Settings
from appliance.web.server import create_app
from tests.knowledge import hostile
from tests.knowledge.helpers import PLANTS, RIVERS, embed

GROWTH = 100 * 2**20  # bytes that the asking process may take on; each of these files would take gigabytes
# Of the archives, what is said: from the directory alone, before anything is unpacked, or of the one part that lied.
SAID = {
    "very many parts.docx": "in 100001 parts",
    "one part very many times.docx": "would unpack to 4000 MB in 4000 parts",
    "two hundred megabytes.docx": "would unpack to 200 MB",
    "two hundred megabytes.odt": "would unpack to 200 MB",
    "two hundred megabytes.xlsx": "would unpack to 200 MB",
    "two hundred megabytes.epub": "would unpack to 200 MB",
    "says more.docx": "would unpack to 2048 MB",
    "says less.docx": "its ZIP parts cannot be read",
    "says next to nothing.epub": "its ZIP parts cannot be read",
    "archives in archives.docx": "is no readable DOCX",
    "swelling.docx": "needs more than 190 MB of memory to read",
}


@pytest.fixture(scope="module")
def pdfs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return hostile.pdfs(tmp_path_factory.mktemp("hostile") / "pdfs")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return hostile.archives(tmp_path_factory.mktemp("hostile") / "archives")


def _resident() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


async def _added_beside_a_web_app(settings: Settings, paths: list[Path]) -> list[FileReport]:
    """Add them in the process, and in the event loop, of a whole web app, which is asked all the while whether it is well."""
    appliance = Appliance.open(settings)
    library = Library(settings, appliance.database, embed)
    transport = httpx.ASGITransport(app=create_app(appliance))
    before = _resident()
    largest = answers = 0
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        adding = asyncio.create_task(library.add(paths))
        while not adding.done():
            assert (await client.get("/health")).status_code == 200
            answers += 1
            largest = max(largest, _resident())
            await asyncio.sleep(0.01)
        reports = await adding
        assert (await client.get("/health")).status_code == 200
    assert answers >= len(paths), "it answered while files were read"
    assert largest - before < GROWTH
    found = await library.search("Where does a river build a delta?", within=EVERYTHING)
    assert found.passages[0].file == "zz.txt", "what came after them was added, and is found"
    library.close()
    await appliance.close()
    return reports


def _judged(reports: list[FileReport], paths: list[Path]) -> dict[str, str]:
    """The sentence about each file that was refused; every file has a line, and is read or refused for what it is."""
    assert [report.file for report in reports] == [path.name for path in paths]
    for report in reports:
        assert report.status in ("added", "unchanged", "failed")
        if report.error is not None:
            assert isinstance(report.error, BadInput) and report.file in report.error.message and report.error.hint
    return {report.file: report.error.message for report in reports if report.error is not None}


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"extract_seconds": 5, "extract_memory_mb": 300}, pytest.param({}, marks=pytest.mark.long)])
async def test_hostile_pdfs_are_read_or_refused_and_the_web_app_beside_them_answers(
    settings: Settings, tmp_path: Path, pdfs: list[Path], limits: dict[str, int]
) -> None:
    good = tmp_path / "zz.txt"
    good.write_text(RIVERS)
    bounded = settings.model_copy(update={"document_characters": 2_000_000, "ocr_languages": ""} | limits)
    refused = _judged(await _added_beside_a_web_app(bounded, [*pdfs, good]), [*pdfs, good])
    assert "cut off" in refused["no end.pdf"]
    for name in ("lzw.pdf", "flate.pdf", "flate in flate.pdf"):
        assert "damaged" in refused[name] or "more than" in refused[name] or "contains" in refused[name], "it is a bomb"
    for name in (
        "lzw in lzw.pdf",
        "xref to itself.pdf",
        "enormous count.pdf",
        "inline image negative.pdf",
        "pages in pages.pdf",
    ):
        assert name not in refused, "what is sound of it is read"


@pytest.mark.slow
def test_pages_of_hostile_pdfs_are_drawn_or_not(settings: Settings, pdfs: list[Path]) -> None:
    """As text recognition would have them."""
    limited = settings.model_copy(update={"extract_seconds": 5})
    before, drawn = _resident(), 0
    for path in pdfs:
        picture = ocr._drawn(path, 1, limited)
        assert not picture or picture.startswith(b"P5 ")
        drawn += bool(picture)
        assert _resident() - before < GROWTH
    assert drawn, "some were"


@pytest.mark.slow
async def test_hostile_archives_are_refused_before_they_are_unpacked(
    settings: Settings, tmp_path: Path, archives: list[Path]
) -> None:
    """With less memory for reading one than each would unpack to: they could not have been unpacked to be refused."""
    good = tmp_path / "zz.txt"
    good.write_text(RIVERS)
    for path in archives:
        if path.name.startswith("two hundred"):
            assert path.stat().st_size < 449 * 1024
    bounded = settings.model_copy(update={"extract_memory_mb": 190, "extract_seconds": 5})
    refused = _judged(await _added_beside_a_web_app(bounded, [*archives, good]), [*archives, good])
    assert refused.keys() == SAID.keys()
    for name, words in SAID.items():
        assert words in refused[name], refused[name]


# --- what would be fetched, opened or started ------------------------------------------------------------------------
@pytest.mark.optional
@pytest.mark.slow
def test_entities_open_no_file_and_no_connection_as_the_system_sees_it(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    seen = "trace=open,openat,openat2,connect,sendto,sendmsg,execve"
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "300", "-e", seen, "-o", str(calls)]
    if not shutil.which("strace") or subprocess.run([*strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed, or may not trace here")
    secret = tmp_path / "pupils-secret.txt"
    secret.write_text("Thandeka has 23 marks")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        addresses = [secret.as_uri(), f"http://127.0.0.1:{port}/x.dtd"]
        documents = hostile.with_entities(tmp_path / "documents", addresses)
        assert len(documents) == 40
        code = (
            "import sys; from pathlib import Path; from appliance.settings import Settings\n"
            "from appliance.errors import ApplianceError; from appliance.knowledge.extract import extract\n"
            "for path in map(Path, sys.argv[2:]):\n"
            "    try: print(extract(path, path.name, Settings(home=Path(sys.argv[1]))))\n"
            "    except ApplianceError as error: print(error.message)\n"
        )
        command = [*strace, sys.executable, "-c", code, str(tmp_path / "home"), *map(str, documents)]
        done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=True)
        with pytest.raises(BlockingIOError):
            server.accept()
    said = done.stdout.splitlines()
    assert len(said) == len(documents)
    assert all(f"{path.name} declares XML entities" in line for path, line in zip(documents, said, strict=True)), said
    traced = [line for line in calls.read_text(errors="replace").splitlines() if "resumed>" not in line]
    for path in documents:
        assert any("open" in line and path.name in line for line in traced), "what is opened is seen"
    # Of the command line, which names the documents, only that Python is what is started.
    started = [line for line in traced if "execve(" in line]
    assert len(started) == 1 + len(documents) and all(f'execve("{sys.executable}"' in line for line in started)
    others = [line for line in traced if "execve(" not in line]
    assert not [line for line in others if secret.name in line or "x.dtd" in line or "AF_INET" in line]


class Starts:
    """What a pickle can do to whoever loads it."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> object:
        return (Path.touch, (self._marker,))


def test_a_pdf_that_names_a_pickle_as_its_table_of_characters_starts_nothing(tmp_path: Path, settings: Settings) -> None:
    """A parser that loads named tables as pickles would load this one: see CVE-2025-64512."""
    import gzip

    marker = tmp_path / "marker"
    table = tmp_path / "table.pickle.gz"
    table.write_bytes(gzip.compress(pickle.dumps(Starts(marker))))
    pickle.loads(gzip.decompress(table.read_bytes()))
    assert marker.exists(), "whoever loads it starts it"
    marker.unlink()
    for number, named in enumerate([str(table), str(table).removesuffix(".pickle.gz"), "../" * 20 + str(table)[1:]]):
        path = hostile.pdf_with_map(tmp_path / f"{number}.pdf", named)
        assert PLANTS in readers.read(path, path.name, 10_000).sections[0][0], "and without the walls of its process"
        assert PLANTS in extract(path, path.name, settings).sections[0].text
    assert not marker.exists()


def test_scripts_macros_links_and_fields_of_a_document_do_nothing(tmp_path: Path, settings: Settings) -> None:
    marker, program = tmp_path / "marker", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    subprocess.run([program], check=True)
    assert marker.exists(), "whoever starts it leaves a mark"
    marker.unlink()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        for path, words in hostile.active(tmp_path / "documents", program, address).items():
            unwalled = readers.read(path, path.name, 10_000)
            found = extract(path, path.name, settings)
            assert [text for text, _, _, _ in unwalled.sections] == [section.text for section in found.sections]
            text = "\n".join(section.text for section in found.sections)
            assert words in text, path.name
            for never in ("launchURL", "Shell", "Attribute", "DDEAUTO", "WEBSERVICE", address, str(program)):
                assert never not in text, f"{path.name}: {never} is no text of it"
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not marker.exists()
