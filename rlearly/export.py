"""`python -m rlearly.export run=<run dir>`: a trained policy as one ONNX or TorchScript file."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.export")

from dataclasses import dataclass

from rlearly.config.fields import setting
from rlearly.config.structured import from_overrides, refuse_folders
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import DONE, STATUS_HELP
from rlearly.system.command import as_command, call_instead

call_instead(__name__, "rlearly.api.run:export")


@dataclass(frozen=True)
class ExportConfig:
    """Which policy to export, and where to."""

    run: str = setting("", "run directory; RUN_DIR@FRAMES or RUN_DIR@best chooses a checkpoint")
    format: str | None = setting(
        None, "onnx or torchscript; null: by the suffix of out, otherwise onnx"
    )
    out: str | None = setting(
        None, "file that ends in .onnx or .pt; null: policy.onnx or policy.pt in the run directory"
    )
    overwrite: bool = setting(False, "whether to replace an existing file")
    episodes: int = setting(2, "episodes to play for the check", at_least=1)
    seed: int = setting(0, "seed of these episodes", at_least=0)


@as_command
def main(overrides: list[str]) -> int:
    """Export with these settings; returns the exit status."""
    if "--help" in overrides or "-h" in overrides or not overrides:
        from rlearly.config.help import command_help

        usage = "python -m rlearly.export run=RUN_DIR [format=onnx|torchscript] [out=policy.onnx]"
        print(command_help(usage, ExportConfig), STATUS_HELP, sep="\n")
        return DONE
    from rlearly.api.run import export

    refuse_folders(overrides, ExportConfig, "run")
    config: ExportConfig = from_overrides(ExportConfig(), overrides)
    if not config.run:
        raise ConfigError("run: expected a run directory, as in run=runs/td3/Hopper-v5/0-<time>.")
    written = export(
        config.run,
        config.out,
        format=config.format,
        episodes=config.episodes,
        seed=config.seed,
        overwrite=config.overwrite,
    )
    checked = written.manifest["checked"]
    found = (
        f"{checked['same_actions']:.1%} of its actions equal the policy's"
        if "same_actions" in checked
        else f"its actions differ from the policy's by at most {checked['largest_difference']:.1g} "
        "of their range"
    )
    print(f"{written.path}: {found}, checked in {checked['steps']} steps")
    for each in written.manifest["inputs"]:
        print(f"  input {each['name']}: {each['dtype']} {_shape(each['shape'])}")
    output = written.manifest["output"]
    print(f"  output {output['name']}: {output['dtype']} {_shape(output['shape'])}")
    if "note" in written.manifest:
        print(f"  {written.manifest['note']}")
    print(f"manifest: {written.manifest_path}")
    return DONE


def _shape(shape: list[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"
