"""Runs, features, norms and connections."""

import numpy as np
import polars as pl
import pyarrow as pa

import actstore
from actstore import Batching, Dataset, Positions, Retries, Timeout, Where

lab = actstore.connect("lab:7433", timeout=Timeout(answer_seconds=30), retries=Retries(attempts=2))
actstore.connect("lab:7433", root_certificates="authority.pem", max_message_bytes=2**20)
actstore.connect("lab:7433", certificates="authority.pem")  # wrong
actstore.connect("lab:7433", tls="yes")  # wrong
actstore.connect("lab:7433", timeout=30)  # wrong
Retries(tries=3)  # wrong

options: actstore.CaptureOptions = {"dense_sites": ["resid_post"], "max_tokens": 1000}
dataset = Dataset("text", text_field="body", row_filters=[("language", "==", "en")])
run = lab.capture("m", dataset=dataset, saes=["sae"], positions=Positions.last(), run="mine").wait()
lab.capture("m", dataset="text", dense_sites="resid_post", batching=Batching(packing=True), dtype="bfloat16")
lab.capture("m", dataset="text", sites=["resid_post"])  # wrong
lab.capture("m", dataset="text", maks_tokens=3)  # wrong
lab.capture("m", dataset="text", dtype="float64")  # wrong
lab.capture("m", dataset="text", positions="last")  # wrong
lab.capture("m", dataset=Dataset("text", row_filters=[("language", "=", "en")]))  # wrong
lab.capture("m", dataset="text", batching=Batching(sequences=3))  # wrong
lab.estimate_capture("m", dataset="text", **options)
lab.estimate_capture("m", dataset="text", storage_dtype="float16")
lab.estimate_capture("m", dataset="text", foo=1)  # wrong
lab.estimate_capture("m", dataset="text", bos=True)  # wrong
lab.capture_revisions("m", ["a", "b"], dataset="text", steps=(1, 2), max_tokens=9)
lab.capture_revisions("m", ["a", "b"], dataset="text", max_token=9)  # wrong
lab.remove("mine", force="no")  # wrong
lab.check("mine", remove_orphan=True)  # wrong
lab.attach(run_name="mine")  # wrong

run.norms("resid_post", by="position", quantity="rms", exclude=("bos", "position_0"), quantiles=(0.5,))
run.norms(by="head")  # wrong
run.norms(by="token")  # wrong
run.norms(quantity="linf")  # wrong
run.norms(exclude="padding")  # wrong
run.token_norms(range(4), "resid_post", quantity="centred_l2")
run.token_norms(4)  # wrong
run.fit_growth("resid_post", layers=range(1, 4), quantity="rms").plot()
run.fit_growth(quantity="cosine_to_stream")  # wrong
run.fit_growth(layers=3)  # wrong
run.norms().plot(growth=run.fit_growth(), site="resid_post")
run.norms().plot(fit="resid_post")  # wrong
run.norms().fit_growth()  # wrong
checkpoints = lab.checkpoints([run, "other"], steps=[1, 2])
checkpoints.fit_growth("checkpoint", layers=[3])
checkpoints.fit_growth("training")  # wrong
checkpoints.norms().plot_heatmap(site="resid_post")
run.norms().plot_heatmap()  # wrong
run.activations(["resid_post.1", "z.0"], range(3), columns=("token",), exclude="bos").to_numpy("z.0")
run.activations("resid_post.1", columns=("text",))  # wrong
run.activations(site="resid_post.1")  # wrong
run.tokens(exclude=("BOS",))  # wrong
run.export("resid_post.1", "folder", layout="parquet")  # wrong
run.encode(["sae"], name="mine")  # wrong
actstore.simulate_depth("scalar_chains")  # wrong
actstore.simulate_depth(layers=5)  # wrong

features = run.features("sae")
first = next(iter(features))
features.search(density=(0.001, None), order="maximum", k=3).to_pandas()
features.search(order="kurtosis")  # wrong
features.search(desnity=(0.1, 0.2))  # wrong
features.active(Where(documents=[2]), order="lift")
features.active(order="density")  # wrong
features.sample([1, 2], "strongest")  # wrong
features.statistics([1, 2], with_token_r2=True)
features.table()  # wrong
features.logit_lens([1, 2], side="encoder").end("top")
features.logit_lens([1, 2], side="left")  # wrong
features.logit_lens([1]).end("middle")  # wrong
features.by_text("text", n=3)  # wrong
features.check(n_tokens=100, warn=False)
features.check(tokens=100)  # wrong
feature = run.feature("sae", 3)
feature.uniform(5, over="rank", where=Where(positions=range(1, 9)))
feature.uniform(5, over="quantile")  # wrong
feature.top(3, exclude=["sinks"])  # wrong
feature.neighbours()  # wrong
feature.neighbors(side="decoder")
feature.ablate_text("text", ablation="mean_residual")
feature.ablate_text("text", ablation="mean")  # wrong
Where(sequence=range(3))  # wrong

pl.DataFrame(feature.top())
pa.table(feature.top())
lab.weights("m", layers=[0, np.int64(1).item()], prepend_bos=False).plot_sublayers(sublayer="mlp")
lab.weights("m", prepend_bos="no")  # wrong
lab.weights("m").plot_sublayers(sublayer="attention")  # wrong
