"""Every registered method with small widths, for tests that all methods must pass."""

from dsmoe_jax.models.matching import (
    adin,
    dsmoe,
    dsmoe_plus,
    dssm,
    fism,
    fuxi,
    hstu,
    ican,
    m5,
    mind,
    mmoe,
    perscen,
    sass,
)
from dsmoe_jax.models.ranking import din, fused, hinet, hmoe, m3oe, mmoe_din, ple, sap_ranker, star

SMALL_MATCHERS = {
    "adin": adin.ADINConfig(hidden_dims=(6,), output_dim=5),
    "dsmoe": dsmoe.DSMOEConfig(num_experts=2, rank=2, hidden_dim=6, output_dim=5),
    "dsmoe_plus": dsmoe_plus.DSMOEPlusConfig(
        output_dim=5, targets=3, tower_dim=3, num_experts=2, rank=2, hidden_dim=6
    ),
    "fuxi": fuxi.FuxiConfig(output_dim=6, num_heads=2),
    "fuxi_mme": fuxi.FuxiMMEConfig(output_dim=6, num_experts=3),
    "hstu": hstu.HSTUConfig(output_dim=6, num_heads=2),
    "m5": m5.M5Config(
        attention_dim=4, num_experts=2, expert_dims=(6, 5), output_dim=4, mask_negatives=5
    ),
    "perscen": perscen.PERSCENConfig(hidden_dim=6, output_dim=5, num_codes=4),
    "sass": sass.SASSConfig(hidden_dims=(6, 5), output_dim=4, bias_dim=3, pretrain_epochs=1),
    "ican": ican.ICANConfig(attention_dims=(4,), num_heads=2, hidden_dims=(6,), output_dim=5),
    "dssm": dssm.DSSMConfig(hidden_dims=(6,), output_dim=5),
    "dssm_per_scenario": dssm.DSSMPerScenarioConfig(hidden_dims=(6,), output_dim=5),
    "fism": fism.FISMConfig(output_dim=5, targets=3),
    "mind": mind.MINDConfig(num_interests=2, hidden_dims=(6,), output_dim=5),
    "mmoe": mmoe.MMoEConfig(num_experts=2, expert_dims=(6, 5), output_dim=5),
}
# Every part of the joint input.
JOINT_INPUT = {
    "attention_hidden": (3,),
    "attention_length": 4,
    "use_log_prior": True,
    "collaborative": True,
    "collaborative_dim": 3,
}
SMALL_RANKERS = {
    "mmoe_din": mmoe_din.MMoEDINConfig(
        num_experts=2, expert_dims=(6, 5), tower_dims=(4,), **JOINT_INPUT
    ),
    "sap": sap_ranker.SAPRankerConfig(num_experts=2, rank=2, hidden_dim=6, output_dim=5),
    "ple": ple.PLEConfig(expert_dims=(6, 5), tower_dims=(4,), **JOINT_INPUT),
    "hmoe": hmoe.HMoEConfig(
        num_experts=2,
        expert_dims=(6, 5),
        gate_dims=(4,),
        tower_dims=(4,),
        weight_dims=(3,),
        **JOINT_INPUT,
    ),
    "hinet": hinet.HiNetConfig(expert_dims=(6, 5), task_dims=(4,), tower_dims=(3,), **JOINT_INPUT),
    "m3oe": m3oe.M3oEConfig(
        star_dim=6,
        representation_dim=5,
        num_experts=2,
        expert_dims=(4,),
        tower_dims=(3,),
        **JOINT_INPUT,
    ),
    "star": star.STARConfig(hidden_dims=(6, 5), aux_dims=(4,), **JOINT_INPUT),
    "din": din.DINConfig(hidden_dims=(6, 5), **JOINT_INPUT),
    "fused": fused.FusedConfig(
        members={
            "sap": sap_ranker.SAPRankerConfig(num_experts=2, rank=2, hidden_dim=4, output_dim=3),
            "star": star.STARConfig(hidden_dims=(5,), aux_dims=(3,), **JOINT_INPUT),
        }
    ),
}
