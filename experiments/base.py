"""The tutorial's experiment, and the list of all fields.

    python -m mnist_cnn.main --config experiments/base.py

One epoch of Adam on all 60,000 training images.
Result: 98.52 % test accuracy with seed 1337; experiments/seeds.py has the mean of 30 seeds.
Cost: 31 s on 2 cores of an AMD EPYC.

Every field but metrics, augment and train_step, which take functions, can be given on the command
line, as in --config.learning_rate=3e-4. Another experiment is a file that states what differs:
mnist_cnn.experiment(name="mine", num_epochs=5).
"""

import mnist_cnn


def get_config():
    return mnist_cnn.experiment(
        name="base",  # in result.json and in runs/<name>-<time>
        seed=1337,  # 0 to 2**31 - 1; all randomness follows from it
        num_seeds=1,  # train this number of networks, with the seeds seed, seed + 1, ...
        sweep=None,  # {"batch_size": [32, 64], "b1": [0.8, 0.9]}: train all, choose by validation
        variants=None,  # {"mlp": {"model": ...}, "cnn": {}}: train several versions, likewise
        sweep_method="grid",  # or halving: the worse settings end early, for 1/4 of the steps
        #
        # Data
        dataset="mnist",  # mnist (in the package), fashion_mnist or kmnist (downloaded)
        manual_dir=None,  # or a folder of your own images: docs/your-own-images.md
        train_split="train",  # a part of the training images in tfds' syntax: "train[:55000]"
        validation_split=None,  # another part, to validate on: "train[55000:]"
        labels_per_class=None,  # train on this number of images of each class, chosen by the seed
        fold=None,  # "3/10": hold out the third of ten parts of train_split, and test on that
        #
        # Network, loss and optimizer: a name, or in an experiment file your own object
        # (--config.model.FIELD=VALUE sets a field of your own module)
        model="cnn",  # or compact, compact_views, a linen module or an nnx class: images -> logits
        init_from=None,  # initial weights: a .safetensors, .keras or .weights.h5 (Keras) file
        loss="cross_entropy",  # or cross_entropy_or_none, with a class "none" whose logit is 0,
        # or a function (logits [B, K], labels [B]) -> losses [B]
        optimizer="adam",  # or a function (learning_rate[, total_steps]) -> optax transformation
        compute_dtype="float32",  # or bfloat16, for the network's products; params stay float32
        learning_rate=1e-3,  # above 0; Keras' default for Adam
        b1=0.9,  # Adam's decay rate of the mean of the gradients
        b2=0.999,  # Adam's decay rate of the mean of their squares
        eps=1e-8,  # added to the square root of that mean
        weight_decay=0.0,  # decoupled (AdamW), multiplied by the learning rate
        label_smoothing=0.0,  # the share of the target that is spread over all classes
        schedule="constant",  # or cosine, or a function (step[, total_steps]) -> factor of the rate
        warmup_steps=0,  # with cosine, which falls to 0 at the end: first rise for this many steps
        ema=0.0,  # decay, such as 0.999, of the average of the params to evaluate; 0: no average
        #
        # Random augmentation of the training images; 0 turns each off
        rotation=0.0,  # up to this many degrees in either direction
        zoom=0.0,  # height and width, each up to this fraction larger or smaller
        shear=0.0,  # up to this many columns for each row from the center
        shift=0.0,  # up to this many pixels, vertically and horizontally
        augment=None,  # or a function (key, images in 0..1) -> images, after these four
        #
        # The step itself: a function (state, batch, data_axis) -> (state, metrics)
        train_step=None,  # None: gradient descent on the mean loss of the batch
        #
        # Length
        batch_size=32,  # images per step; the last batch of an epoch may be smaller
        num_epochs=1,  # passes over the training images
        num_steps=None,  # the number of steps, instead of num_epochs
        #
        # Metrics besides loss and accuracy
        metrics=None,  # {"top2": function (logits [B, K], labels [B]) -> [B]}, shown with accuracy
        norms=False,  # log the norms of gradient, update and parameters
        #
        # Which step's network is tested and kept; None: the last one's
        keep_best=None,  # that of the best validation by "accuracy", "loss" or an own metric
        patience=None,  # end after this number of validations without a better one
        #
        # Output, in steps
        log_every=100,  # log the mean training loss and accuracy since the last time
        eval_every=None,  # evaluate on validation_split; None: after every epoch
        eval_batch_size=250,  # images per batch of an evaluation; changes no result
        checkpoint_every=500,  # also at the end
        keep=2,  # the number of checkpoints to keep, at least 2
        report=True,  # write report.html at the end
        #
        # The number of threads that sums are split over on a CPU, which decides their last bits
        num_threads=None,  # None: NPROC if it is set, else 2; a larger number uses more cores
        #
        # Devices; None uses all of them, for replicas first, then for parts of each batch
        mesh=None,  # "2x4": 2 groups of devices for replicas x 4 devices for a batch
        replicas_at_once=None,  # None: one per CPU device, on an accelerator what fits in memory
        profile=False,  # record a trace of steps 20 to 40 and the cost of a step
        smoke=False,  # do not train: check in seconds that everything works on this machine
    )
