"""TensorFlow without Keras: tf.Module and raw ops."""
