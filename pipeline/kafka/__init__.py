"""All access to Kafka: the embedded broker, topics, the Faust transport, transactions and the producer."""
