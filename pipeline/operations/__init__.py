"""Operations: what the topics tell about hits, for people and scripts."""
