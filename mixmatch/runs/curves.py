"""The groups of a run's curves in TensorBoard, and their descriptions."""

# Shown on TensorBoard's page of texts; methods add those of their own curves.
DESCRIPTIONS = {
    "loss": "the training loss, averaged over the steps since the previous point",
    "lr": "learning rate",
    "steps_per_second": "training steps per second, without evaluations and checkpoints",
    "confidence": "largest probability of the guessed labels, averaged",
    "guess_accuracy": "accuracy of the guessed labels in percent, for unlabeled images with a known class",
    "max_class_frequency": "share of the most frequent class among the guessed labels",
    "effective_num_classes": "exp(entropy) of the classes of the guessed labels",
    "validation_accuracy": "accuracy of the EMA network on the validation images in percent",
    "test_accuracy": "accuracy of the EMA network on the test images in percent",
    "validation_balanced_accuracy": "mean recall of the classes on the validation images in percent",
    "test_balanced_accuracy": "mean recall of the classes on the test images in percent",
    "labeled_accuracy": "accuracy of the EMA network on labeled images (at most 1,000), not augmented, in percent",
    "validation_loss": "cross-entropy of the EMA network on the validation images",
    "test_loss": "cross-entropy of the EMA network on the test images",
    "labeled_images": "images that are trained on as labeled ones, pseudo-labeled ones included",
    "unlabeled_images": "images that are trained on as unlabeled ones",
}
# Groups of curves; all others, such as training losses and schedules, are in the group ``train``.
GROUPS = {
    **dict.fromkeys(["confidence", "guess_accuracy", "max_class_frequency", "effective_num_classes"], "guesses"),
    **dict.fromkeys(["validation_accuracy", "test_accuracy", "labeled_accuracy"], "accuracy"),
    **dict.fromkeys(["validation_balanced_accuracy", "test_balanced_accuracy"], "accuracy"),
    **dict.fromkeys(["validation_loss", "test_loss"], "loss"),
    **dict.fromkeys(["labeled_images", "unlabeled_images"], "images"),
}
