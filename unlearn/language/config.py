"""What a run on facts is asked for."""

from analysis.fact_localization import Within
from unlearn.documents import Sight


class FactRunConfig(Sight):
    """All that decides a run's numbers, besides the versions of the libraries.

    Attributes:
        bank: "beatles", "einstein", "shakespeare" or a file.
        model: "smollm2", a hub name or a folder.
        method: Name in `LANGUAGE_METHODS`; None takes the default.
        measure: In `fact_localization.MEASURES`, or "none" to allow every weight.
        within: Where the mask may lie.
        fraction: Share of all weights that the edit may change, in (0, 1].
        twins: How many twins span the band; None takes 14, of which 6 are attacked, or 10 for a quick run.
        seed: Decides everything random.
        choosing: Audit on the share "choose" instead of "audit", so that settings can be chosen by the result;
            a quick run then asks relearning and every rounding, too.
        quick: Smaller budgets, fewer controls, no planted facts.
        device: Where models are, in PyTorch's words; other devices round otherwise, and share no cache with the CPU.
        candidate: Model to audit instead of making an edit; a folder or hub name.
    """

    bank: str = "beatles"
    model: str = "smollm2"
    method: str | None = None
    measure: str = "fisher"
    within: Within = "down"
    fraction: float = 0.01
    twins: int | None = None
    seed: int = 0
    choosing: bool = False
    quick: bool = False
    device: str = "cpu"
    candidate: str | None = None
