"""What comes of the experiments: a table on screen, a CSV file, a plot. Plain pandas from here on."""

import matplotlib

matplotlib.use("Agg")  # needs no screen

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from rich.console import Console
from rich.table import Table

KERNELS = ["linear", "poly", "rbf"]
PANELS = {
    "iris": "Iris: 150 flowers, 4 features, 3 classes",
    "wine": "Wine: 178 wines, 13 features, 3 classes",
    "breast_cancer": "Breast cancer: 569 cases, 30 features, 2 classes",
    "digits": "Digits: 1,000 images, 64 features, 10 classes",
}
BAND = {"alpha": 0.18, "linewidth": 0}
TICKS = [0.2, 0.5, 0.8, 0.9, 0.95, 0.98]


def finished(table):
    return table[table["status"] == "done"]


def print_table(table, folds):
    """Mean test accuracy by dataset and kernel, each at its best C; the best of a row is bold."""
    by_c = finished(table).groupby(["dataset", "kernel", "C"])["test_accuracy"].agg(["mean", "std"])
    best = by_c.loc[by_c.groupby(["dataset", "kernel"])["mean"].idxmax()].droplevel("C").unstack("kernel")
    shown = Table(title="Test accuracy at the best C (mean ± sd over seeds)")
    shown.add_column("dataset")
    for kernel in KERNELS:
        shown.add_column(kernel, justify="right")
    for dataset, row in best.reindex(columns=KERNELS, level="kernel").iterrows():
        shown.add_row(dataset, *(cell(row["mean"], row["std"], kernel) for kernel in KERNELS))
    Console().print(shown)
    print(f"{len(finished(table))} experiments, {len(folds)} folds in the log table.", flush=True)


def cell(means, deviations, kernel):
    if kernel not in means.dropna():
        return "–"
    text = f"{means[kernel]:.3f} ± {deviations[kernel]:.3f}"
    return f"[bold]{text}[/]" if means[kernel] == means.max() else text


def save_csv(table, path):
    """All rows, without the bookkeeping columns."""
    table[[name for name in table.columns if not name.startswith("_")]].to_csv(path, index=False)
    print(f"Wrote {path.name}.", flush=True)


def save_plot(table, path):
    """Accuracy against C: a panel a dataset, a line a kernel, the range over seeds as a band.

    The scale is a logit's: 98% is as far from 95% as 95% from 90%, so that good machines can be told apart.
    """
    sns.set_theme(style="whitegrid", context="paper", font_scale=1.1, rc={"grid.color": "#e4e4e4"})
    done = finished(table)
    looks = {"hue": "kernel", "hue_order": KERNELS, "style": "kernel", "style_order": KERNELS}
    figure, panels = plt.subplots(2, 2, figsize=(8, 6), sharex=True, sharey=True, layout="constrained")
    for panel, (dataset, title) in zip(panels.flat, PANELS.items(), strict=True):
        rows = done[done["dataset"] == dataset]
        sns.lineplot(
            rows,
            x="C",
            y="test_accuracy",
            ax=panel,
            palette="colorblind",
            errorbar=("pi", 100),
            err_kws=BAND,
            markers=True,
            dashes=False,
            markersize=7,
            legend=panel is panels[0, 0],
            **looks,
        )
        panel.set_title(title, fontsize=10, loc="left")
        finish(panel)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.supxlabel("Regularisation parameter C (log scale)", fontsize=11)
    figure.supylabel("Test accuracy (logit scale)", fontsize=11)
    title_and_legend(figure, panels[0, 0], seeds=table["seed"].nunique())
    figure.savefig(path, dpi=200)
    plt.close(figure)
    print(f"Wrote {path.name}.", flush=True)


def finish(panel):
    """Scales, ticks and frame, alike in every panel."""
    panel.set(xscale="log", yscale="logit", xlabel="", ylabel="", ylim=(0.1, 0.992))
    panel.yaxis.set_major_locator(FixedLocator(TICKS))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter("{x:g}")
    sns.despine(ax=panel)


def title_and_legend(figure, panel, seeds):
    """One headline and one legend for all panels."""
    handles, labels = panel.get_legend_handles_labels()
    panel.get_legend().remove()
    labels = [f"{label} kernel" for label in labels]
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
        fontsize=10,
        title_fontsize=12,
        title=f"Support vector machines, 5-fold cross-validation: mean and range over {seeds} seeds",
    )
