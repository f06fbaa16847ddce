"""Whether a model was shown to see more than a shortcut, in one word and one sentence."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from historay.evaluation.intervals import Estimate
from historay.evaluation.shortcut import FAMILIES

_CHANCE = 0.5  # ROC-AUC, of two classes or averaged over each class against the rest
_ALARM_SHARE, _CAUTION_SHARE = 0.9, 0.7  # of the model's distance from chance

Verdict = Literal["alarm", "caution", "clear", "unknown"]


class ShortcutVerdict(BaseModel):
    """What the shortcuts say about a model's ROC-AUC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    best: str | None  # the family with the highest ROC-AUC; None if none is defined
    share: float | None  # of the model's distance from chance that the best family reaches; None if the model has none
    sentence: str


def judge_shortcuts(model_auc: Estimate, family_aucs: Mapping[str, Estimate], gains: Mapping[str, Estimate]) -> ShortcutVerdict:
    """Judges a model's ROC-AUC against the best shortcut's.

    Args:
        model_auc: of the model.
        family_aucs: of each family's baseline on the same tiles, by name in ``FAMILIES``.
        gains: the model's ROC-AUC less the family's, on the same resamples (paired), by the same names.
    """
    found = {name: auc.value for name, auc in family_aucs.items() if auc.value is not None}
    if model_auc.value is None or not found:
        reasons = [auc.reason for auc in (model_auc, *family_aucs.values()) if auc.value is None and auc.reason]
        sentence = f"Not judged against shortcuts: ROC-AUC is undefined ({reasons[0] if reasons else 'no shortcut was tried'})."
        return ShortcutVerdict(verdict="unknown", best=None, share=None, sentence=sentence)
    best = max(found, key=lambda name: found[name])
    distance = model_auc.value - _CHANCE
    share = max(found[best] - _CHANCE, 0.0) / distance if distance > 0 else None
    verdict, what = _judged(share, gains[best], FAMILIES[best].words)
    sentence = f"{what} (ROC-AUC {model_auc.value:.3f} against {found[best]:.3f}, {_gain_in_words(gains[best])})."
    return ShortcutVerdict(verdict=verdict, best=best, share=share, sentence=sentence)


def _judged(share: float | None, gain: Estimate, words: str) -> tuple[Verdict, str]:
    if share is None:
        return "alarm", f"The model ranks no better than chance; the best shortcut is {words}"
    reaches = f"{words} alone reaches {share:.1%} of the model's distance from chance"
    if gain.low is not None and gain.low <= 0:
        return "alarm", f"The model is not shown to see more than {words}"
    if share >= _ALARM_SHARE:
        return "alarm", f"The model may have learned a shortcut: {reaches}"
    if gain.low is None:
        return "unknown", f"Whether the model sees more than {words} is not known, as the gain has no interval"
    if share >= _CAUTION_SHARE:
        return "caution", f"The model sees more than {words}, but {reaches}"
    return "clear", f"The model sees more than the best shortcut: {reaches}"


def _gain_in_words(gain: Estimate) -> str:
    if gain.value is None or gain.low is None or gain.high is None:
        return gain.reason or "gain unknown"
    return f"gain {gain.value:.3f}, 95 % interval {gain.low:.3f} to {gain.high:.3f}"
