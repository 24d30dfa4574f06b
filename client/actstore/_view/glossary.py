"""What each number of an answer is, in one line: the titles of a notebook view, and docs/reference/columns.md."""

from collections.abc import Mapping

STATISTICS: Mapping[str, str] = {
    "feature": "index of the feature in its SAE",
    "tokens": "tokens that count",
    "active_tokens": "tokens that count on which the feature is above 0",
    "density": "active tokens over tokens that count",
    "maximum": "largest activation",
    "mean_when_active": "mean activation over active tokens",
    "token_r2": "share of the feature's variance over tokens that the token alone explains, corrected for chance: "
    "1 for a lookup of the token, 0 where it does not matter",
}
ACTIVE: Mapping[str, str] = {
    "feature": STATISTICS["feature"],
    "active_tokens": "chosen tokens on which the feature is above 0",
    "mean": "mean activation over all chosen tokens, zeros included",
    "maximum": "largest activation on a chosen token",
    "density": "active tokens over tokens that count, over the whole run",
    "lift": "share of chosen tokens on which the feature fires, over its density",
    "position": "where in the text it is strongest",
    "text": "the token there",
}
COFIRING: Mapping[str, str] = {
    "feature": "index of the other feature",
    "both_tokens": "tokens on which both fire",
    "share": "share of this feature's tokens on which the other fires: P(other | this)",
    "density": "share of all tokens on which the other fires: P(other)",
    "lift": "P(other | this) / P(other); 1 for independence",
}
NEIGHBORS: Mapping[str, str] = {
    "feature": "index of the other feature",
    "cosine": "cosine of the angle between the two directions",
}
EXAMPLES: Mapping[str, str] = {"activation": "the feature's activation on the marked token"}
LENS: Mapping[str, str] = {
    "rank": "1 is furthest from 0 at this end",
    "token": "id of the token",
    "logit": "the direction's dot product with the token's unembedding vector",
}
TEXT_ABLATION: Mapping[str, str] = {
    "activation": "the feature at the text's last token, once this is taken away",
    "change": "that less the feature on the whole text",
    "interaction": "change of the pair less those of its two tokens alone; well below 0: either token will do",
}
ATTENTION: Mapping[str, str] = {
    "entropy": "mean over queries of the entropy of their attention, nats",
    "distance": "mean over queries of the weighted distance to their keys, tokens",
    "previous_token": "share of the head's attention on the token before the query",
    "first_token": "share on the first token, which is BOS if the text has one",
    "current_token": "share on the query itself",
    "duplicate_token": "share on earlier occurrences of the query's own token",
    "induction": "share on the tokens after earlier occurrences of the query's own token",
}
INDUCTION: Mapping[str, str] = {
    "induction": "mean weight on the token after the first occurrence of the query's own, the second time",
    "duplicate_token": "mean weight on that occurrence",
    "previous_token": "mean weight on the token before the query",
}
TOKEN_COMPARISON: Mapping[str, str] = {
    "norm": "L2 norm of the token's row of the embedding",
    "norm_z": "standard deviations of the ordinary tokens' norms from their mean",
    "norm_below": "share of the ordinary tokens with smaller norms",
    "cosine_to_mean": "cosine to the mean embedding of the ordinary tokens",
    "cosine_z": "standard deviations of the ordinary tokens' cosines from their mean",
    "cosine_to_clean": "cosine to the embedding of the clean prompt's token",
    "shift": "attention that later queries of this head put on it, less that on the clean prompt's token",
}
SITE_ABLATION: Mapping[str, str] = {
    "loss": "mean cross-entropy without the part, nats",
    "change": "that less the whole model's: above 0, the part helps to predict these texts",
}
QUANTITIES: Mapping[str, str] = {
    "tokens": "stored tokens that were looked at",
    "l0": "features above 0 on a token, in the mean",
    "fvu": "fraction of variance unexplained by the reconstruction",
    "dead_share": "share of features that fire on none of these tokens",
    "loss": "mean cross-entropy of the model, nats",
    "loss_reconstructed": "the same with the SAE's reconstruction in place of the site",
    "loss_zeroed": "the same with zeros in place of the site",
    "loss_recovered": "(zeroed - reconstructed) / (zeroed - loss): 1 for a perfect reconstruction",
}
SUBLAYERS: Mapping[str, str] = {
    "input": "gaussian: in place of what the norm gives; normalized: Gaussian, through the norm; text: real",
    "expected": "root mean square of the written norm, by formula",
    "sampled": "the same over the samples, or over the text's tokens",
    "standard_error": "of sampled",
    "active_expected": "share of MLP units whose pre-activation is above 0, were it Gaussian",
    "active_sampled": "that share over the samples, or over the text's tokens",
}
