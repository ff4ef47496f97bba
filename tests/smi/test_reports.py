"""Reports of a server with real clients: as JSON by the published schemas, as text at any width, for Prometheus."""

import json
import os
import subprocess

from prometheus_client.parser import text_string_to_metric_families

from conftest import ROOT, check, program, until


def test_each_json_is_what_its_schema_says(server):
    client = server.work()
    report = check(server.smi("list", "--json").stdout)
    assert [c["pid"] for c in report["clients"]] == [client.pid] and report["place"] == "npu.manage"
    report = check(server.smi("show", "--json", "--over", "0.5").stdout)
    (one,) = report["clients"]
    assert one["jobs"] > 0 and one["use"]["jobs"] > 0 and report["use"]["macs"] > 0 and one["state"] == "ready"
    lines = server.smi("top", "--json", "--count", "3", "--every", "0.2").stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert check(line)["clients"][0]["use"]["jobs"] > 0
    id = str(one["id"])
    assert one["saturation"] == {"is_counted": False} | {engine: {"codes": 0, "lowest": 0, "highest": 0} for engine in ("array", "vector")}
    said = check(server.smi("saturation", "on", "--client", id, "--json").stdout)
    assert said["clients"] == [one["id"]] and said["is_counted"] and not said["is_for_all"]
    until("codes that are counted", lambda: server.stats()["clients"][0]["saturation"]["array"]["codes"] > 0)
    assert check(server.smi("inject", "lost-interrupt@1000000", "--client", id, "--json").stdout)["clients"] == [one["id"]]
    assert "lost-interrupt@" in str(server.stats()["clients"][0]["armed"])
    check(server.smi("inject", "none", "--json").stdout)
    assert check(server.smi("reset", id, "--json").stdout)["clients"] == [one["id"]]


def test_every_schema_is_published_and_used(server):
    published = {path.name.split(".")[0].removeprefix("npu-smi-") for path in (ROOT / "docs/schemas").glob("npu-smi-*.v1.json")}
    commands = {line.split()[0] for line in server.smi("--help").stdout.split("Commands:")[1].split("Options:")[0].splitlines() if line[:2] == "  " and line[2:3].isalpha()}
    assert published == commands - {"help"} | {"dump-list"}


def test_use_is_seen_where_a_client_works(server):
    assert server.stats()["use"]["jobs"] == 0
    server.work()
    used = json.loads(server.smi("show", "--json", "--over", "1").stdout)["use"]
    assert used["jobs"] > 0 and used["busy_percent"] > 0
    text = server.smi("show").stdout
    assert "% busy" in text and "JOBS/s" in text and "npu" in text


def test_saturation_is_told_once_it_is_counted_and_as_not_counted_before(server):
    server.work()
    assert "not counted; see `npu-smi saturation`" in server.smi("show", "1").stdout
    assert server.smi("saturation", "on").stdout == "counted: client 1, and those to come\n"
    until("counts", lambda: "lowest" in server.smi("show", "1").stdout)
    server.smi("saturation", "off", "--client", "1")
    assert "no longer counted; array" in server.smi("show", "1").stdout
    server.smi("saturation", "perhaps", code=2)
    assert "there is no client 99" in server.smi("saturation", "on", "--client", "99", code=4).stderr


def test_prometheus_text_passes_its_parser(server):
    server.work()
    text = server.smi("show", "--prometheus").stdout
    families = {family.name: family for family in text_string_to_metric_families(text)}
    jobs = families["npu_client_jobs"]
    assert jobs.type == "counter" and jobs.samples[0].value > 0 and jobs.samples[0].labels["process"] == "npu"
    assert families["npu_up"].samples[0].value == 1 and families["npu_client_mapped_bytes"].type == "gauge"
    assert all(family.documentation for family in families.values())
    assert families["npu_client_saturation_counted"].samples[0].value == 0
    assert "npu_client_saturated_codes" not in families, "zeros that nobody has counted"
    server.smi("saturation", "on")
    until("codes", lambda: [
        sample
        for family in text_string_to_metric_families(server.smi("show", "--prometheus").stdout)
        if family.name == "npu_client_saturated_codes"
        for sample in family.samples
        if sample.value > 0 and sample.labels["engine"] == "array" and sample.labels["end"] == "lowest"
    ])
    before = {sample.labels["client"]: sample.value for sample in jobs.samples}
    until("more jobs", lambda: any(
        sample.value > before[sample.labels["client"]]
        for family in text_string_to_metric_families(server.smi("show", "--prometheus").stdout)
        if family.name == "npu_client_jobs"
        for sample in family.samples
    ))


def test_reports_follow_each_other_until_the_reader_has_enough(server):
    command = [program("npu-smi"), "--socket", server.socket, "list", "--json", "--watch", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        for _ in range(3):
            check(child.stdout.readline())
        child.stdout.close()
        assert child.wait(60) == 0, child.stderr.read()


def test_a_device_string_and_the_environment_name_the_server(server):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NPU_")}
    for environment in ({"NPU_MANAGE": str(server.socket)}, {"NPU_DEVICE": server.device}, {"XDG_RUNTIME_DIR": str(server.folder)}):
        done = subprocess.run([program("npu-smi"), "list"], env=clean | environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "no clients" in done.stdout, (environment, done)
    done = subprocess.run([program("npu-smi"), "list", "--device", server.device], env=clean, capture_output=True, text=True, timeout=60)
    assert "no clients" in done.stdout, done
