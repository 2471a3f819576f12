"""nnUNetTrainerMetaDCSeg: nnU-Net training that withstands wrong labels. Only wiring; the mathematics lies beside."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_metadcseg.agreement import (
    NUM_DIRECTIONS,
    CaseAgreement,
    direction_counts,
    disagreement,
    hard_labels,
    structure_size,
)
from nnunetv2_metadcseg.center_distance import CenterDistance, normalised_entropy, region_weights
from nnunetv2_metadcseg.feature_tap import FeatureTap, unwrap
from nnunetv2_metadcseg.influence import HeadInfluence, flatten_voxels, logit_gradient
from nnunetv2_metadcseg.meta_weights import MetaWeights
from nnunetv2_metadcseg.teacher import MeanTeacher
from nnunetv2_metadcseg.trusted_trainer import TrustedBatchTrainer


class nnUNetTrainerMetaDCSeg(TrustedBatchTrainer):
    """MetaDCSeg (arXiv 2511.18894) in nnU-Net: learned trust in labels and pseudo-labels, Dynamic Center Distance."""

    def initialize(self):
        super().initialize()
        network = unwrap(self.network)
        self.teacher = MeanTeacher(network, self.teacher_horizon)
        self.teacher.module.decoder.deep_supervision = False
        self.tap = FeatureTap(network)
        self.influence = HeadInfluence(self.config.influence_momentum)
        self.centers = CenterDistance(
            self.config.center_momentum, self.config.dcd_temperature, self.config.dcd_strength
        )
        self.meta = MetaWeights(
            self.num_meta_inputs,
            self.config.meta_hidden,
            learning_rate=self.config.meta_learning_rate,
            pull=self.config.meta_pull,
            device=self.device,
        )
        self.step = 0

    @property
    def num_meta_inputs(self):
        return 10 + NUM_DIRECTIONS * (2 if self.config.context else 1)

    @property
    def teacher_horizon(self):
        low, high = self.config.teacher_horizon
        return min(max(low, round(self.config.teacher_fraction * self.total_steps)), high)

    def build_train_loader(self, dataset, initial_patch_size, transforms):
        loader = super().build_train_loader(dataset, initial_patch_size, transforms)
        self.case_index = {case: i for i, case in enumerate(dataset.identifiers)}
        trusted = torch.zeros(len(self.case_index), dtype=torch.bool, device=self.device)
        trusted[[self.case_index[case] for case in loader.trusted]] = True
        self.agreement = CaseAgreement(
            len(self.case_index), trusted, self.config.case_momentum, self.config.best_share, self.config.max_optimism
        )
        self.loader = loader
        loader.trusted_only = True
        return loader

    @property
    def starting(self):
        return self.step < self.config.start_fraction * self.total_steps

    def train_step(self, batch):
        self.loader.trusted_only = self.starting
        result = super().train_step(batch)
        self.teacher.update(unwrap(self.network))
        self.step += 1
        return result

    def training_targets(self, batch, data, outputs, label, valid):
        features = self.tap.pop()
        logits = (outputs[0] if isinstance(outputs, (list, tuple)) else outputs).detach().float()
        n = batch["num_given"]
        if n == 0:
            return label, valid
        return self.mixed_targets(batch, data, logits, features, label, valid, n)

    @torch.no_grad()
    def mixed_targets(self, batch, data, logits, features, label, valid, n):
        regions = self.label_manager.has_regions
        p = self.probabilities(logits)
        q = self.probabilities(self.teacher(data).float()) if self.config.teacher else p
        cases = torch.tensor([self.case_index[k] for k in batch["keys"]], device=self.device)
        differs, direction = disagreement(label, q, valid, regions)
        counts = direction_counts(differs, direction)
        self.agreement.update(cases, counts, structure_size(label, q, valid, regions))
        # centers
        self.centers.update(self.centers.sums(features, region_weights(p, regions), valid))

        # influence
        def trusted_loss(z):
            return self.weighted_loss.single(z, label[n:], valid[n:])

        g = logit_gradient(trusted_loss, logits[n:])
        self.influence.update(self.influence.step_direction(features[n:], g))
        target, weight = label.clone(), valid.clone()
        alpha = self.given_alpha(
            batch, features[:n], p[:n], q[:n], label[:n], valid[:n], differs[:n], direction[:n], cases[:n]
        )
        pseudo = q[:n] if self.config.soft_pseudo_labels else hard_labels(q[:n], regions)
        a = torch.where(differs[:n], alpha, 1.0)
        target[:n] = a * label[:n] + (1 - a) * pseudo
        if self.config.dcd_strength:
            weight[:n] = weight[:n] * self.centers.gamma(features[:n], valid[:n])
        return target, weight

    def given_alpha(self, batch, features, p, q, label, valid, differs, direction, cases):
        c = self.config
        where = differs.nonzero(as_tuple=True)
        belief = self.agreement.label_belief(cases)
        d = direction[where]
        prior = torch.logit(belief[where[0], d]) if c.agreement_prior else torch.zeros(len(d), device=self.device)
        if c.influence == "none":
            alpha = torch.sigmoid(prior)
        else:
            w = (where[0], slice(None), *where[2:])
            f = features[w].float()
            pv, qv, yv = p[w], q[w], label[w]
            D = self.influence.directional(f)
            gain = (D * (hard_labels(q, False)[w] - yv)).sum(1)
            dist = self.centers.distances(f)
            onehot = torch.nn.functional.one_hot(d, NUM_DIRECTIONS).float()
            eps = 1e-4
            cols = [
                (pv * yv).sum(1),
                (pv * qv).sum(1),
                (qv * yv).sum(1),
                qv.amax(1),
                normalised_entropy(p)[where[0], 0, *where[2:]],
                normalised_entropy(q)[where[0], 0, *where[2:]],
                prior / 4,
                *dist.T,
            ]
            inputs = torch.stack(cols, 1)
            parts = [inputs, onehot]
            if c.context:
                parts.append((self.agreement.rates()[cases][where[0]]).clamp(0, 2))
            inputs = torch.cat(parts, 1)
            if self.step % c.meta_interval == 0:
                self.meta.update(inputs, prior, gain, 1 - self.step / self.total_steps)
            alpha = self.meta.alpha(inputs, prior)
        out = torch.zeros(differs.shape, device=self.device)
        out[where] = alpha
        return out
