"""Every registered method with small widths, for tests that all methods must pass."""

from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din, sap_ranker

SMALL_MATCHERS = {
    "dsmoe": dsmoe.DSMOEConfig(num_experts=2, rank=2, hidden_dim=6, output_dim=5),
}
SMALL_RANKERS = {
    "mmoe_din": mmoe_din.MMoEDINConfig(
        num_experts=2,
        expert_dims=(6, 5),
        tower_dims=(4,),
        attention_hidden=(3,),
        attention_length=4,
        use_log_prior=True,
        collaborative=True,
        collaborative_dim=3,
    ),
    "sap": sap_ranker.SAPRankerConfig(num_experts=2, rank=2, hidden_dim=6, output_dim=5),
}
