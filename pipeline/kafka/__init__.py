"""All that knows Kafka: the embedded broker, topics, the Faust transport, transactions, the producer."""
