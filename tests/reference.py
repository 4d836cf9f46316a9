"""A MixMatch step in float64, written from the paper's equations and the authors' order of passes, loop by loop.

Shares no code with the project: plain passes one by one, BatchNorm, Adam, decay and EMA by their formulas.
"""

import math

import torch
import torch.nn.functional as F


def batch_norm(state, name, x, moves):
    mean = x.mean(dim=(0, 2, 3))
    var = ((x - mean[None, :, None, None]) ** 2).mean(dim=(0, 2, 3))
    if moves is not None:
        count = x.numel() / x.shape[1]
        moves[f"{name}.running_mean"] = 0.999 * state[f"{name}.running_mean"] + 0.001 * mean.detach()
        unbiased = var.detach() * count / (count - 1)
        moves[f"{name}.running_var"] = 0.999 * state[f"{name}.running_var"] + 0.001 * unbiased
    normal = (x - mean[None, :, None, None]) / torch.sqrt(var[None, :, None, None] + 1e-3)
    return state[f"{name}.weight"][None, :, None, None] * normal + state[f"{name}.bias"][None, :, None, None]


def leaky(x):
    return torch.where(x > 0, x, 0.1 * x)


def wide_resnet_10(state, x, moves=None, output="dense"):
    """WRN-10: one block in each of three groups. ``moves`` collects moved running statistics."""
    x = F.conv2d(x, state["stem.weight"], padding=1)
    for group in range(3):
        name, stride = f"blocks.{group}", 1 if group == 0 else 2
        active = leaky(batch_norm(state, f"{name}.bn1", x, moves))
        skip = active if group == 0 else x
        if f"{name}.shortcut.weight" in state:
            skip = F.conv2d(skip, state[f"{name}.shortcut.weight"], stride=stride)
        # TensorFlow's "same" at stride 2: an image of even size is padded at the right and bottom only.
        padded = F.pad(active, (1, 1, 1, 1) if stride == 1 else (active.shape[3] % 2, 1, active.shape[2] % 2, 1))
        out = F.conv2d(padded, state[f"{name}.conv1.weight"], stride=stride)
        out = leaky(batch_norm(state, f"{name}.bn2", out, moves))
        x = skip + F.conv2d(out, state[f"{name}.conv2.weight"], padding=1)
    x = leaky(batch_norm(state, "bn", x, moves))
    return x.mean(dim=(2, 3)) @ state[f"{output}.weight"].T + state[f"{output}.bias"]


def cross_entropy(logits, targets):
    return -(targets * (logits - torch.logsumexp(logits, dim=1, keepdim=True))).sum(dim=1)


def fixmatch_weights(guesses, threshold):
    return torch.tensor([float(max(row) >= threshold) for row in guesses.tolist()])


def softmatch_weights(guesses, means, momentum, align):
    """``means`` holds mean and variance of raw confidence, and mean prediction; moved here."""
    count = guesses.shape[1]
    confidence = [max(row) for row in guesses.tolist()]
    mean = sum(confidence) / len(confidence)
    variance = sum((value - mean) ** 2 for value in confidence) / (len(confidence) - 1)
    means["mean"] = momentum * means["mean"] + (1 - momentum) * mean
    means["variance"] = momentum * means["variance"] + (1 - momentum) * variance
    if align:
        average = guesses.mean(dim=0)
        started = means["prediction"].sum() > 0
        means["prediction"] = momentum * means["prediction"] + (1 - momentum) * average if started else average
        guesses = torch.stack([row * (1 / count) / means["prediction"] for row in guesses])
        guesses = torch.stack([row / row.sum() for row in guesses])
    weights = []
    for value in (max(row) for row in guesses.tolist()):
        distance = value - means["mean"]
        weights.append(1.0 if distance >= 0 else math.exp(-(distance**2) * 4 / (2 * means["variance"])))
    return torch.tensor(weights)


def freematch_weights(guesses, means, momentum):
    """``means`` holds confidence, prediction and named; moved here."""
    count = guesses.shape[1]
    labels = guesses.argmax(dim=1).tolist()
    named = torch.tensor([labels.count(c) / len(labels) for c in range(count)])
    for name, value in (
        ("confidence", guesses.amax(dim=1).mean()),
        ("prediction", guesses.mean(dim=0)),
        ("histogram", named),
    ):
        means[name] = momentum * means[name] + (1 - momentum) * value
    largest = max(means["prediction"].tolist())
    return torch.tensor(
        [
            float(max(row) >= means["confidence"] * means["prediction"][label] / largest)
            for row, label in zip(guesses.tolist(), labels, strict=True)
        ]
    )


def fairness(strong, weights, means):
    """Sum of a log b over classes, a and b normalized quotients of mean prediction by share of labels."""
    kept = strong[weights > 0]
    if not len(kept):
        return torch.zeros(())
    labels = kept.argmax(dim=1).tolist()
    a, b = [], []
    for c in range(strong.shape[1]):
        a.append(means["prediction"][c] / means["histogram"][c])
        share = labels.count(c) / len(labels)
        b.append(kept[:, c].mean() / share if share else torch.zeros(()))
    a, b = torch.stack(a) / sum(a), torch.stack(b) / sum(b)
    return (a * torch.log(b + 1e-12)).sum()


class Reference:
    """Weights, running statistics, Adam's moments and EMA, and the step that moves them."""

    def __init__(self, state, parameters):
        self.state = {name: value.clone() for name, value in state.items()}
        self.parameters = list(parameters)
        self.ema = {name: self.state[name].clone() for name in self.parameters}
        self.first = {name: torch.zeros_like(self.state[name]) for name in self.parameters}
        self.second = {name: torch.zeros_like(self.state[name]) for name in self.parameters}
        self.steps = 0

    def mixmatch_losses(self, x, p, u, partner, share, temperature, lambda_u, guess_with_ema):
        """x (B, ...), p (B, C), u: list of K batches; partner and share over the (K + 1) B examples, x first."""
        batch_size, views = len(x), len(u)
        guesser = self.state | self.ema if guess_with_ema else self.state
        average = sum(F.softmax(wide_resnet_10(guesser, view), dim=1) for view in u) / views
        sharp = average ** (1 / temperature)
        q = (sharp / sharp.sum(dim=1, keepdim=True)).detach()

        images, labels = torch.cat([x, *u]), torch.cat([p] + [q] * views)
        mixed_images, mixed_labels = [], []
        for i in range(len(images)):
            keep = share[i]
            mixed_images.append(keep * images[i] + (1 - keep) * images[partner[i]])
            mixed_labels.append(keep * labels[i] + (1 - keep) * labels[partner[i]])
        batches = list(torch.stack(mixed_images).split(batch_size))
        targets = torch.stack(mixed_labels)

        slices = self._slices(batch_size, views + 1)
        moves = {}
        logits = []
        for i, batch in enumerate(self._interleave(batches, slices)):
            logits.append(wide_resnet_10(self.weights, batch, moves if i == 0 else None))
        logits = torch.cat(self._interleave(logits, slices))
        log_p = logits[:batch_size] - torch.logsumexp(logits[:batch_size], dim=1, keepdim=True)
        labeled = -(targets[:batch_size] * log_p).sum() / batch_size
        gaps = F.softmax(logits[batch_size:], dim=1) - targets[batch_size:]
        unlabeled = (gaps**2).sum() / (views * batch_size * p.shape[1])
        return labeled + lambda_u * unlabeled, labeled, unlabeled, moves

    def remixmatch_losses(
        self, x, p, weak, strong, partner, share, temperature, shares, means, weights, rotation, guess_with_ema
    ):
        """weak (B, ...), strong: list of K batches; partner and share over the (K + 2) B examples, x first, then weak.

        ``means`` holds the mean predictions of the last batches, moved here; ``weights`` are those of the loss.
        """
        batch_size = len(x)
        guesser = self.state | self.ema if guess_with_ema else self.state
        predictions = F.softmax(wide_resnet_10(guesser, weak), dim=1).detach()
        q = []
        for prediction in predictions:
            aligned = prediction * (shares + 1e-6) / (sum(means["predictions"]) / len(means["predictions"]) + 1e-6)
            sharp = (aligned / aligned.sum()) ** (1 / temperature)
            q.append(sharp / sharp.sum())
        q = torch.stack(q)
        means["predictions"] = torch.stack([*means["predictions"][1:], predictions.mean(dim=0)])
        images, labels = torch.cat([x, weak, *strong]), torch.cat([p, q] + [q] * len(strong))
        mixed_images = [share[i] * images[i] + (1 - share[i]) * images[partner[i]] for i in range(len(images))]
        mixed_labels = [share[i] * labels[i] + (1 - share[i]) * labels[partner[i]] for i in range(len(images))]
        batches, targets = list(torch.stack(mixed_images).split(batch_size)), torch.stack(mixed_labels)
        slices, moves, logits = self._slices(batch_size, len(batches)), {}, []
        for i, batch in enumerate(self._interleave(batches, slices)):
            logits.append(wide_resnet_10(self.weights, batch, moves if i == 0 else None))
        logits = torch.cat(self._interleave(logits, slices))
        unmixed = wide_resnet_10(self.weights, strong[0])
        labeled = cross_entropy(logits[:batch_size], targets[:batch_size]).mean()
        unlabeled = cross_entropy(logits[batch_size:], targets[batch_size:]).mean()
        anchored = cross_entropy(unmixed, q).mean()
        total = labeled + weights[0] * unlabeled + weights[1] * anchored
        turning = torch.zeros(())
        if rotation:
            turned = torch.stack([torch.rot90(view, i % 4, (1, 2)) for i, view in enumerate(strong[0])])
            logits = wide_resnet_10(self.weights, turned, output="head")
            turning = cross_entropy(logits, F.one_hot(torch.arange(batch_size) % 4, 4).double()).mean()
        return total + rotation * turning, labeled, unlabeled, anchored, turning, moves

    def weak_to_strong_losses(self, x, p, weak, strong, weigh, lambda_u, more=None):
        """Of FixMatch and its kin: ``weigh`` maps the predictions on ``weak`` to weights, ``more`` adds a loss."""
        moves = {}
        logits = wide_resnet_10(self.weights, torch.cat([x, weak, strong]), moves)
        guesses = F.softmax(logits[len(x) : -len(strong)], dim=1).detach()
        weights = weigh(guesses)
        labels = F.one_hot(guesses.argmax(dim=1), p.shape[1]).double()
        labeled = cross_entropy(logits[: len(x)], p).mean()
        unlabeled = (weights * cross_entropy(logits[-len(strong) :], labels)).sum() / len(strong)
        total = labeled + lambda_u * unlabeled
        extra = more(F.softmax(logits[-len(strong) :], dim=1), weights) if more else torch.zeros(())
        return total + extra, labeled, unlabeled, extra, moves

    def supervised_losses(self, x, p):
        moves = {}
        logits = wide_resnet_10(self.weights, x, moves)
        loss = -(p * torch.log(F.softmax(logits, dim=1))).sum() / len(x)
        return loss, moves

    def step(self, losses, lr=0.002, weight_decay=0.02, ema_decay=0.999):
        """Differentiate what ``losses(self)`` returns first, and update all. Returns the gradients and the result."""
        self.weights = self.state | {name: self.state[name].clone().requires_grad_() for name in self.parameters}
        result = losses(self)
        leaves = [self.weights[name] for name in self.parameters]
        gradients = dict(zip(self.parameters, torch.autograd.grad(result[0], leaves), strict=True))
        self.steps += 1
        for name, gradient in gradients.items():
            self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
            self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
            mean = self.first[name] / (1 - 0.9**self.steps)
            square = self.second[name] / (1 - 0.999**self.steps)
            value = self.state[name] - lr * mean / (torch.sqrt(square) + 1e-8)
            if value.dim() > 1:
                value = value * (1 - weight_decay * lr)
            self.state[name] = value
            self.ema[name] = ema_decay * self.ema[name] + (1 - ema_decay) * value
        self.state |= result[-1]
        return gradients, result

    @staticmethod
    def _slices(batch_size, count):
        sizes = [batch_size // count + (i >= count - batch_size % count) for i in range(count)]
        ends = [sum(sizes[: i + 1]) for i in range(count)]
        return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    @staticmethod
    def _interleave(batches, slices):
        swapped = [batch.clone() for batch in batches]
        for i in range(1, len(batches)):
            swapped[0][slices[i]], swapped[i][slices[i]] = batches[i][slices[i]], batches[0][slices[i]]
        return swapped
