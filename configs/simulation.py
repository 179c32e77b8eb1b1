"""Generated worlds whose true scores are known: what SAP, a teacher and distillation earn.

    python -m dsmoe_jax.compare simulate
        Every system of both worlds, five seeds; what is published of them is made from it.
    python -m dsmoe_jax.main --config configs/simulation.py:shift
        One run: DSMOE without a teacher where scenarios shift the taste.
    python -m dsmoe_jax.main --config configs/simulation.py:match
        One run: DSMOE with a teacher where an item is liked for its creator.

Data: generated, see `data/synthetic/world.py`; `--config.data.generator_seed` makes another
world. Time: one to three minutes a run on two cores. Expected results: docs/results/simulation.md.

Variants, one world and at most one token of every other axis, in any order:
    world      shift: twelve scenarios with Zipf shares and a taste shift of rank 4; no distillation
               match: two scenarios; an item is liked if its creator is among the user's last ten
    sap        no_sap; no_sap_wide: without SAP and with wider layers, so that it has as many
               parameters as with SAP to within 1 %
    norm       no_dsbn, no_norm
    distill    no_distill

Sizes and learning values were set once, on trial runs in the worlds of generator seed 0, and are
the same for every system.
"""

from dsmoe_jax.config import schema, variants
from dsmoe_jax.data.synthetic import world
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din

AXES = {
    "world": ("shift", "match"),
    "sap": ("no_sap", "no_sap_wide"),
    "norm": ("no_dsbn", "no_norm"),
    "distill": ("no_distill",),
}

HIDDEN_DIM, OUTPUT_DIM = 32, 16
# With SAP, layers of HIDDEN_DIM have as many parameters as layers of this width without.
WIDE_HIDDEN_DIM = 37


def get_config(variant: str = "") -> schema.Experiment:
    """The experiment of a variant, e.g. `shift,no_sap_wide`.

    Raises:
      ValueError: When no world is chosen.
    """
    chosen = variants.parse(variant, AXES)
    if "world" not in chosen:
        raise ValueError(f"variant: expected a world, shift or match, got {variant!r}")
    is_shift = chosen["world"] == "shift"
    sap, norm = chosen.get("sap", ""), chosen.get("norm", "")
    model = dsmoe.DSMOEConfig(
        hidden_dim=WIDE_HIDDEN_DIM if sap == "no_sap_wide" else HIDDEN_DIM,
        output_dim=OUTPUT_DIM,
        use_sap=not sap,
        **dsmoe.ABLATIONS.get(norm, {}),
    )
    # The user id would have few rows each; taste is told by features and histories.
    unseen = ("user_id", "scenario_history")
    return schema.Experiment(
        dataset="planted world",
        variant=variant,
        data=make_shift() if is_shift else make_match(),
        model=model,
        teacher=make_teacher(attended="history" if is_shift else "creator_history"),
        features=schema.FeatureConfig(
            history_length=10,
            exclude=(*unseen, "creator_history") if is_shift else unseen,
        ),
        loss=schema.LossConfig(distill_weight=0.0 if is_shift or "distill" in chosen else 1.0),
        train=schema.TrainConfig(max_epochs=20, patience=3, learning_rate=3e-3, average_decay=0.99),
        eval=schema.EvalConfig(
            k=(50,),
            validation_queries=300 if is_shift else 1000,
            teacher_test_queries=100_000,
            references=False,
        ),
    )


def make_shift() -> world.SyntheticWorldConfig:
    """Many scenarios, most of them small; each mixes the users' contexts in its own way."""
    return world.SyntheticWorldConfig(
        num_users=4000, num_items=2000, num_creators=500, num_scenarios=12
    )


def make_match() -> world.SyntheticWorldConfig:
    """As many directions as creators, far more than the towers' outputs have."""
    return world.SyntheticWorldConfig(
        num_users=4000,
        num_items=2000,
        num_creators=500,
        num_scenarios=2,
        recent=10,
        shift_std=0.0,
        match_weight=4.0,
    )


def make_teacher(attended: str) -> schema.TeacherConfig:
    """A teacher that sees the student's features and nothing more, candidates with histories."""
    return schema.TeacherConfig(
        model=mmoe_din.MMoEDINConfig(
            expert_dims=(32, 32),
            tower_dims=(16,),
            dropout=0.0,
            attention_sequences=(attended,),
            attention_length=10,
        ),
        max_epochs=20,
        patience=3,
        learning_rate=3e-3,
    )
