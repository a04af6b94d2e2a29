"""The pages in docs and their examples: links lead somewhere, scripts parse, and what can run here runs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).resolve().parents[1] / "docs"
SCRIPTS = sorted((DOCS / "examples").glob("*.sh"))
needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")


def test_links_lead_somewhere():
    links = [link for page in DOCS.glob("*.md") for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8"))]
    assert all(link.startswith("https://") or (DOCS / link).is_file() for link in links)
    assert {*SCRIPTS, *(DOCS / "examples").glob("*.yaml")} <= {(DOCS / link).resolve() for link in links}


def test_each_cell_of_the_feature_table_leads_to_what_shows_it():
    page = Path(__file__).with_name("benchmarks") / "features.md"
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert all(link.startswith("https://") or (page.parent / link).is_file() for link in links)
    beside = text.split("| | here |")[1].split("\n\n")[0].splitlines()[2:]
    for row in beside:
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert len(cells) == 7 and all(cells) and re.fullmatch(r"\[.+\]\(\.\..+\.py\)", cells[1]), row
    tables = [part.split("\n\n")[0].splitlines()[2:] for part in text.split("shown in |")[1:]]
    shown = [row.split("|")[-2] for table in tables for row in table]
    assert len(beside) > 25 and len(shown) > 25 and all("](../" in cell for cell in shown)


def test_the_header_of_a_static_space():
    """The hub reads it as YAML; the page has the name that the command above writes."""
    text = (DOCS / "hub.md").read_text("utf-8")
    header = yaml.safe_load(re.search("```yaml\n---\n(.+?)---\n```", text, re.DOTALL)[1])
    assert header["sdk"] == "static" and f"--export space/{header['app_file']}" in text


@needs_bash
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_the_kubernetes_job_asks_for_as_many_cores_as_workers():
    job = yaml.safe_load((DOCS / "examples" / "bulk_kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:4] == ["python", "-m", "utils", "bulk"]
    assert container["command"][-1] == container["resources"]["requests"]["cpu"]


@needs_bash
def test_the_slurm_script_goes_on_where_there_is_a_checkpoint(tmp_path):
    """With stand-ins for what SLURM brings, and for the training itself."""
    for name, line in {"srun": 'exec "$@"', "python": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", DOCS / "examples" / "train_slurm.sh"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "-m utils train --data my_photos --out my_model\n"
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model" / "checkpoint.npz").touch()
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" --resume\n")
