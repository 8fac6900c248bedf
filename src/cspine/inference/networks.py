"""The networks of a bundle in a runtime: loaded when they are first needed, in the precision that may be used here."""

from __future__ import annotations

from cspine.inference.bundle import Bundle, Precision, StageName
from cspine.inference.runtime import Network, Runtime


class Networks:
    """Loaded networks by stage; stages that share a file share a network.

    Args:
        bundle: whose.
        runtime: that runs them.
        precision: ``auto`` takes the fastest that the bundle's gate allows and the processor has.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, precision: Precision | str = "auto") -> None:
        self.bundle, self.runtime = bundle, runtime
        self._precision = precision
        self._loaded: dict[str, Network] = {}

    def __call__(self, stage: StageName) -> Network:
        """The network of a stage.

        Raises:
            BundleError: the runtime cannot run it.
        """
        file = self.bundle.manifest.stages[stage].file
        if file not in self._loaded:
            self._loaded[file] = self.runtime.load(self.bundle.model(stage), self.precision_of(stage))
        return self._loaded[file]

    def precision_of(self, stage: StageName) -> Precision:
        """The precision that a stage runs in here; stages that share a network share it."""
        wanted, manifest = self._precision, self.bundle.manifest
        if wanted == "f32" or not self.runtime.supports("bf16"):
            return "f32"
        sharing = [stage] if stage not in manifest.stages else manifest.sharing(stage)
        return "bf16" if wanted == "bf16" or all(manifest.tolerates(name, "bf16") for name in sharing) else "f32"
