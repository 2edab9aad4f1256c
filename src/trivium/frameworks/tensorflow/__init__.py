"""TensorFlow without Keras: tf.Module source, and its training steps."""
