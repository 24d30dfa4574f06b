"""An SAE's features, and one of them, asked without blocking the event loop."""

from collections.abc import Iterator

from actstore._async.twins import Shown, Twin, at_once, awaited
from actstore._features.feature import Feature
from actstore._features.features import SaeFeatures


class AsyncFeature(Twin[Feature]):
    """One SAE feature of a run, as `Feature`; every question is awaited: `await feature.top()`."""

    index = Shown[int]()
    run = Shown[str](Feature.run)
    sae = Shown[str](Feature.sae)

    page = awaited(Feature.page)
    top = awaited(Feature.top)
    uniform = awaited(Feature.uniform)
    quantiles = awaited(Feature.quantiles)
    above = awaited(Feature.above)
    statistics = awaited(Feature.statistics)
    token_r2 = awaited(Feature.token_r2)
    cofiring = awaited(Feature.cofiring)
    logit_lens = awaited(Feature.logit_lens)
    neighbors = awaited(Feature.neighbors)
    ablate_text = awaited(Feature.ablate_text)
    ablate_direction = awaited(Feature.ablate_direction)


class AsyncSaeFeatures(Twin[SaeFeatures]):
    """All features of an SAE over a run, as `SaeFeatures`; questions are awaited, and `features[12]` is not."""

    run = Shown[str](SaeFeatures.run)
    sae = Shown[str](SaeFeatures.sae)

    __len__ = at_once(SaeFeatures.__len__)
    __getitem__ = at_once(SaeFeatures.__getitem__, AsyncFeature)

    def __contains__(self, feature: object) -> bool:
        """Whether it is an index of a feature, or one of these features."""
        return (feature._blocking if isinstance(feature, AsyncFeature) else feature) in self._blocking

    def __iter__(self) -> Iterator[AsyncFeature]:
        return (self[index] for index in range(len(self)))

    search = awaited(SaeFeatures.search)
    statistics = awaited(SaeFeatures.statistics)
    active = awaited(SaeFeatures.active)
    by_token = awaited(SaeFeatures.by_token)
    by_text = awaited(SaeFeatures.by_text)
    by_direction = awaited(SaeFeatures.by_direction)
    sample = awaited(SaeFeatures.sample)
    logit_lens = awaited(SaeFeatures.logit_lens)
    encode_text = awaited(SaeFeatures.encode_text)
    check = awaited(SaeFeatures.check)
