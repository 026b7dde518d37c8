"""What is said of the machine."""

from patchform.bench.machine import Machine, machine, processor


def test_the_processor_is_called_as_the_system_calls_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nvendor_id\t: Made\nmodel name\t: Made Up 9000: fast\n")
    assert processor(listed) == "Made Up 9000: fast"
    listed.write_text("processor\t: 0\n")
    assert processor(listed)
    assert processor(tmp_path / "missing")


def test_instructions_are_those_that_torch_names(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_vnni": False, "dotprod": True})
    found = machine(3)
    assert found.instructions == ("AVX2", "dot product")
    assert (found.threads, found.fast_int8) == (3, True)
    assert {"patchform", "Python", "torch"} <= set(found.versions)


def test_who_has_nothing_for_int8_is_told():
    plain = Machine("Old", ("AVX2",), 4, 2, "System", {"torch": "9"})
    assert not plain.fast_int8
    assert plain.lines()[0] == (
        "Old: AVX2; none for int8, whose files are smaller then but not faster; 4 cores, 2 threads"
    )
    assert "none for int8" not in plain._replace(instructions=("AVX2", "AVX VNNI")).lines()[0]
    assert "no instructions that torch names" in plain._replace(instructions=()).lines()[0]
