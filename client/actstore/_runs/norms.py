"""A run's questions about the norms of its activations."""

from collections.abc import Iterable

from actstore._norms.answer import ExcludedFromNorms, NormSize
from actstore._norms.asking import NormGrouping, growth_question, profile_question, token_question
from actstore._norms.growth import Growth, ask_growth
from actstore._norms.profiles import NormProfile, ask_profile
from actstore._norms.tokens import TokenNorms, ask_token_norms
from actstore._transport.base import Backend
from actstore_api.records import catalog
from actstore_api.records.norm import FitGrowth, GetSeparability, NormQuantity


class NormCalls:
    """Questions to a run about norms."""

    _backend: Backend
    _description: catalog.Run

    def norms(
        self,
        sites: Iterable[str] | str | None = None,
        *,
        by: NormGrouping = "layer",
        quantity: NormQuantity = FitGrowth.quantity,
        exclude: ExcludedFromNorms = None,
        quantiles: Iterable[float] | None = None,
        histogram: int | Iterable[float] | None = None,
        exact: bool = False,
    ) -> NormProfile:
        """Return how large the activations of each site are, over the tokens of the run.

        Args:
            sites: Site kinds (`resid_post`) or single sites (`resid_post.3`). None: all whose norms are stored.
            by: What a row is of: `layer` (one site); `site` (all chosen layers of a kind together); `token_class`,
                `position` or `document` (one site, over the tokens of one such group).
            quantity: What is measured of each token's activation:

                - `l2`: L2 norm; `rms`: L2 norm over sqrt(d_model); `standard_deviation` over d_model; `centred_l2`: L2
                  norm of the vector less its mean over d_model.
                - `cosine_to_stream` (of attn_out and mlp_out): cosine to the residual stream that they are added to;
                  `cosine_to_next` (of resid_pre): cosine to what the next layer reads.
                - `share_of_stream` (of attn_out and mlp_out): L2 norm over that of the stream; `relative_increase`:
                  what adding them adds to the stream's L2 norm, over that norm.
            exclude: Tokens that do not count: classes (`bos`, `special`, `sink`), or `position_0`, each sequence's
                first token. None: `bos`. Empty: every token counts.
            quantiles: Quantiles of the tokens' norms, each from 0 to 1. None: 0.05, 0.25, 0.5, 0.75 and 0.95. Empty:
                none, and then only the statistics that are stored with commits are read.
            histogram: Number of bins, 1 to 1000, or ascending edges, for a histogram of each site, by layer only. None:
                none.
            exact: Compute quantiles and histograms from every token's norm, and not from sketches with their
                `rank_error`. It takes time in proportion to the tokens.

        Returns:
            A row for each site, or for each of its groups.

        Raises:
            BadRequest: An argument is not one of those above.
            NotFound: The run stores no norms of a site, or not this quantity.
        """
        asked = profile_question((self._description.name,), sites, by, quantity, exclude, quantiles, histogram, exact)
        return ask_profile(self._backend, asked, by)

    def token_norms(
        self,
        sequences: range | slice,
        sites: Iterable[str] | str | None = None,
        *,
        quantity: NormQuantity = FitGrowth.quantity,
        exclude: ExcludedFromNorms = None,
    ) -> TokenNorms:
        """Return the norms of single tokens.

        Args:
            sequences: Numbers of the sequences, from 0, as range(4). The answer has at most 250,000 values (tokens
                times sites).
            sites: Site kinds (`resid_post`) or single sites (`resid_post.3`). None: all whose norms are stored.
            quantity: What is measured of each token's activation, as in `norms`.
            exclude: Tokens that get no row, as in `norms`. None: `bos`. Empty: every token has one.

        Returns:
            A row for each token, and a column for each site.
        """
        asked = token_question(self._description.name, sequences, sites, quantity, exclude)
        return ask_token_norms(self._backend, asked)

    def fit_growth(
        self,
        site: str = GetSeparability.site,
        *,
        layers: Iterable[int] | None = None,
        quantity: NormSize = "l2",
        exclude: ExcludedFromNorms = None,
        resamples: int = FitGrowth.resamples,
        seed: int = FitGrowth.seed,
    ) -> Growth:
        """Fit how fast the mean norm grows over the layers. Over training: `lab.checkpoints(runs).fit_growth`.

        Args:
            site: A site kind, such as `resid_post`.
            layers: The layers, side by side and at least three, as range(1, 4) for layers 1, 2 and 3. None: all.
            quantity: A measure of size: `l2`; `rms`, at the same rate, which compares models of several widths;
                `standard_deviation` and `centred_l2`, without the mean over d_model.
            exclude: Tokens that do not count, as in `norms`. None: `bos`. Empty: every token counts.
            resamples: Bootstrap resamples of sequences for the intervals, at most 10,000. 0: no intervals.
            seed: Draws the resamples.

        Returns:
            The rate of growth, and whether it is exponential.

        Raises:
            BadRequest: The layers are fewer than three or not side by side, or the quantity is no measure of size.
            NotFound: The run stores no norms of the site.
        """
        asked = growth_question((self._description.name,), site, layers, exclude, quantity, resamples, seed)
        return ask_growth(self._backend, asked)
