"""The joint input and a trunk's layers in NumPy, unsplit and one example at a time."""

import itertools

import numpy as np

from dsmoe_jax.nn import embed


def softmax(x):
    weight = np.exp(x - x.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def mix(hidden, weight):
    """Sum over experts of [G, K * O], weighed by [G, K] or [K]."""
    experts = hidden.reshape(len(hidden), weight.shape[-1], -1)
    return (experts * weight[..., None]).sum(axis=1)


class Reference:
    """Variables of a ranker, read by path; every method sees one example."""

    def __init__(self, model, variables):
        self.model, self.variables = model, variables

    def get(self, path, collection="params"):
        found = self.variables[collection]
        for name in path.split("/"):
            found = found[name]
        return np.asarray(found, np.float64)

    def has(self, path, collection):
        found = self.variables.get(collection, {})
        for name in path.split("/"):
            if name not in found:
                return False
            found = found[name]
        return True

    def inputs(self, users, items, scenario_B):
        """Joint input [B, G, I] and the linear terms of the logit [B, G]."""
        cfg, spec = self.model.cfg, self.model.spec
        params = {"params": self.variables["params"]["embedder"]}
        embedder = embed.Embedder(spec)
        user = embedder.apply(params, users, method="users")
        item = embedder.apply(params, items, method="items")
        ids_BGF = np.asarray(items.sparse_VF)
        G = ids_BGF.shape[1]
        joint, linear = [], []
        for b, s in enumerate(np.asarray(scenario_B)):
            user_parts, item_parts, pair_parts = [user.input_BI[b]], [item.input_BI[b]], []
            user_parts.append(self.get("embedder/scenario_table")[s])
            terms = np.zeros(G)
            fields = {name: np.asarray(value[b]) for name, value in item.fields.items()}
            for sequence in spec.sequences:
                query = np.concatenate([fields[name] for name in sequence.fields], axis=-1)
                pair_parts.append(np.asarray(user.pooled[sequence.name][b]) * query)
                if sequence.name in cfg.attention_sequences:
                    events = user.events[sequence.name]
                    known = np.asarray(events.event_BLE[b])[np.asarray(events.mask_BL[b])]
                    recent = known[max(len(known) - cfg.attention_length, 0) :]
                    pair_parts.append(self.attend(f"attention_{sequence.name}", recent, query))
            pair_parts.append(np.asarray(user.fields["user_id"][b]) * fields["item_id"])
            if cfg.collaborative:
                vector_VC = self.get("item_vector_VC", "constants")
                history = np.asarray(users.sequences["history"].ids_BLF)[b, :, 0]
                pooled = vector_VC[history[history > 0]].sum(axis=0) / max((history > 0).sum(), 1)
                own = vector_VC[ids_BGF[b, :, 0]]
                user_parts.append(pooled)
                item_parts.append(own)
                pair_parts.extend([pooled * own, (own @ pooled)[:, None]])
                terms += self.get("collaborative_weight") * (own @ pooled)
            if cfg.use_log_prior:
                prior = self.get("log_prior_SV", "constants")[s, ids_BGF[b, :, 0]]
                terms += self.get("prior_weight")[s] * (prior + np.log(spec.num_items - 1))
            row = np.tile(np.concatenate(user_parts), (G, 1))
            joint.append(np.concatenate([row, *item_parts, *pair_parts], axis=-1))
            linear.append(terms)
        return np.array(joint, np.float64), np.array(linear)

    def attend(self, path, event_LE, query_GE):
        """DIN's unit on [q; h; q - h; q * h], candidate by candidate."""
        if not len(event_LE):
            return np.zeros_like(query_GE)
        rows, slopes = [], self.get(f"{path}/prelu_slope")
        for query in query_GE:
            tiled = np.tile(query, (len(event_LE), 1))
            x = np.concatenate([tiled, event_LE, tiled - event_LE, tiled * event_LE], axis=-1)
            for n, slope in enumerate(slopes):
                x = x @ self.get(f"{path}/kernel_{n}") + self.get(f"{path}/bias_{n}")
                x = np.where(x >= 0, x, slope * x)
            rows.append(softmax((x @ self.get(f"{path}/kernel_{len(slopes)}"))[:, 0]) @ event_LE)
        return np.array(rows)

    def dense(self, path, x):
        return x @ self.get(f"{path}/kernel") + self.get(f"{path}/bias")

    def experts(self, path, x, K):
        """`mlp.ExpertLinear`."""
        own = x.reshape(len(x), K, -1)
        kernel_KIO = self.get(f"{path}/kernel")
        product = [own[:, k] @ kernel_KIO[k] for k in range(K)]
        return np.concatenate(product, axis=-1) + self.get(f"{path}/bias")

    def scenario(self, path, x, s):
        """`mlp.ScenarioLinear`."""
        return x @ self.get(f"{path}/kernel")[s] + self.get(f"{path}/bias")[s]

    def star(self, path, x, s):
        """`star.StarLinear`."""
        kernel = self.get(f"{path}/kernel") * self.get(f"{path}/scenario_kernel")[s]
        return x @ kernel + self.get(f"{path}/bias") + self.get(f"{path}/scenario_bias")[s]

    def norm(self, path, x, s, K=1):
        """Normalisation of whatever kind the variables tell, at inference."""
        if not self.has(path, "params"):
            return x
        scale, bias = self.get(f"{path}/scale"), self.get(f"{path}/bias")
        if self.has(path, "batch_stats"):
            row = s if len(scale) > 1 else 0
            mean, var = (self.get(f"{path}/{name}", "batch_stats")[row] for name in ("mean", "var"))
            return (x - mean) / np.sqrt(var + 1e-5) * scale[row] + bias[row]
        own = x.reshape(len(x), K, -1)
        own = (own - own.mean(-1, keepdims=True)) / np.sqrt(own.var(-1, keepdims=True) + 1e-5)
        return own.reshape(x.shape) * scale + bias

    def stack(self, path, x, s, K, dims):
        """`mlp.ExpertStack`; an empty path where it has no level of its own in the tree."""
        prefix = f"{path}/" if path else ""
        for n in range(len(dims)):
            if n:
                x = self.experts(f"{prefix}expert_layers_{n - 1}", x, K)
            x = relu(self.norm(f"{prefix}expert_blocks_{n}/norm", x, s, K))
        return x

    def tower(self, path, x, s, dims):
        """`mlp.ScenarioTower`."""
        prefix = f"{path}/" if path else ""
        for n in range(len(dims)):
            x = self.scenario(f"{prefix}tower_layers_{n}", x, s)
            x = relu(self.norm(f"{prefix}tower_blocks_{n}/norm", x, s))
        return self.scenario(f"{prefix}tower_layers_{len(dims)}", x, s)[:, 0]

    def relu_stack(self, path, x, K, dims):
        """`mlp.ReluStack`."""
        for n, _ in enumerate(itertools.pairwise(dims)):
            x = self.experts(f"{path}/ExpertLinear_{n}", relu(x), K)
        return x
