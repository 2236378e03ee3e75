"""Every result file names device, versions and commit."""

from benchmarks.timing import environment


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["environment"] = environment()
    # Names of hosts and paths say nothing about a figure.
    output_json.pop("machine_info", None)
    output_json.pop("commit_info", None)
