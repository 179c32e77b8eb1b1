"""Printed numbers of the paper, as far as they are known here; none is inferred.

arXiv 2601.02368: other rows and another, unknown split than ours. Recalls in %, by method, scenario
and cut-off.
"""

RECALL: dict[str, dict[str, dict[str, dict[int, float]]]] = {
    "KuaiRand-Pure": {
        "dsmoe": {
            "K1": {50: 18.9, 100: 30.1},
            "K2": {50: 31.0, 100: 42.7},
            "K3": {50: 20.3, 100: 30.6},
            "K4": {50: 21.9, 100: 32.6},
        },
        "ican": {
            "K1": {50: 18.1, 100: 28.9},
            "K2": {50: 21.6, 100: 32.0},
            "K3": {50: 17.6, 100: 28.2},
            "K4": {50: 3.5, 100: 7.0},
        },
    }
}

# Table 3, read as millions of parameters, 10^9 multiply-accumulates of a forward pass of 4,096
# pairs, and seconds of training on one GPU.
PARAMETERS_M = {
    "KuaiRand-Pure": {"dsmoe": 2.11, "m5": 13.59, "adin": 7.70},
    "Alimama": {"dsmoe": 38.96},
}
GIGA_MACS = {"KuaiRand-Pure": {"dsmoe": 6.21, "m5": 43.87}, "Alimama": {"dsmoe": 5.51}}
TRAIN_S = {"KuaiRand-Pure": {"dsmoe": 7174}}


def label(ours: str) -> str:
    """The label of the paper's row of a method, which is no rebuilt one."""
    return f"paper: {ours.removesuffix('-style')}"
